//! Edge: artifacts that any HTTP server has.

use super::FetchError;
use super::address::Address;
use super::credentials::Basic;
use super::download::{Blob, Wanted, download};
use super::fault::{self, Peer};
use super::flight::Work;
use super::http::{Ask, Http};
use super::policy::Policy;

/// Downloads a file. Without a checksum only if the policy allows it, and only where nobody can listen in.
///
/// # Errors
/// It may not be had, cannot be had, or is not what it should be.
pub async fn fetch(
    work: &Work,
    policy: &Policy,
    address: &Address,
    checksum: Option<&str>,
) -> Result<Blob, FetchError> {
    if checksum.is_none() && !policy.allow_missing_checksum {
        return Err(FetchError::download(
            fault::CHECKSUM_MISSING,
            "an artifact of type http needs checksumSHA256; --allow-missing-checksum \
             (APOLLO_AGENT_ALLOW_MISSING_CHECKSUM) lifts this for https://",
        ));
    }
    let mut http = Http::new(Peer::Server, policy);
    let authorization = address.credentials.as_deref().map(|plain| Basic::new(plain).header());
    let what = address.to_string();
    let wanted = Wanted { name: "http", what: &what, digest: checksum, size: None, most: policy.limits.bytes };
    download(&mut http, work, &wanted, async |http: &mut Http, headers| {
        let ask = Ask { headers, authorization: authorization.clone(), private: checksum.is_none() };
        http.get(address, &ask).await
    })
    .await
}
