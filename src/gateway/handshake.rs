//! Edge: the beginning of a connection on a port that speaks HTTPS.

use super::answer::plain_http;
use super::connection::State;
use super::limits::Phase;
use super::metrics::Handshake;
use super::tls::Tls;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a connection turned out to be.
enum Begun {
    // Boxed: what TLS keeps is large.
    Tls(Box<TlsStream<TcpStream>>),
    PlainHttp(TcpStream),
}

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The sweeper ended it, or the manager is ending.
    #[error("cut off")]
    Told,
    /// The client speaks HTTP.
    #[error("plain HTTP on a port that speaks HTTPS")]
    PlainHttp,
    /// TLS failed, or the client went away.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

// === impl HandshakeError ===

impl HandshakeError {
    /// What it is counted as.
    pub(super) fn counted(&self, state: &State) -> Handshake {
        match self {
            Self::Told if state.is_cut() => Handshake::Timeout,
            Self::Told => Handshake::Closed,
            Self::PlainHttp => Handshake::PlainHttp,
            Self::Failed(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::AlertReceived(_)) => Handshake::Refused,
                Some(_) => Handshake::Failed,
                // It hung up.
                None => Handshake::Closed,
            },
        }
    }
}

/// Shakes hands. The sweeper sees a head that is under way, so this and the first request's head together have the
/// time of one head.
pub(super) async fn shake(
    stream: TcpStream,
    tls: &Tls,
    state: &State,
) -> Result<Box<TlsStream<TcpStream>>, HandshakeError> {
    let begun = tokio::select! {
        begun = begin(stream, tls) => begun?,
        () = state.told() => return Err(HandshakeError::Told),
    };
    match begun {
        Begun::Tls(stream) => Ok(stream),
        Begun::PlainHttp(stream) => {
            tokio::select! {
                () = refuse(stream, state) => {}
                () = state.told() => {}
            }
            Err(HandshakeError::PlainHttp)
        }
    }
}

async fn begin(stream: TcpStream, tls: &Tls) -> Result<Begun, HandshakeError> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    // A method; TLS begins with another byte. Whoever has http:// for https:// in front of the address should hear so.
    if first[0].is_ascii_uppercase() {
        return Ok(Begun::PlainHttp(stream));
    }
    Ok(Begun::Tls(Box::new(TlsAcceptor::from(tls.config()).accept(stream).await?)))
}

/// Answers without TLS and waits until the client has gone: closing with unread bytes would reset the connection, and
/// the client might never see the answer. The sweeper ends the wait.
async fn refuse(mut stream: TcpStream, state: &State) {
    state.set_phase(Phase::Linger);
    let mut waste = [0; 4096];
    if stream.write_all(&plain_http()).await.is_ok() && stream.shutdown().await.is_ok() {
        while matches!(stream.read(&mut waste).await, Ok(1..)) {}
    }
}
