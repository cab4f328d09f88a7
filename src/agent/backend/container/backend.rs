//! Edge: runs processes as containers of an engine, Docker or another one with its API.
//!
//! What has to be known is kept by the engine itself, as labels and names of containers; only counts of ends are in
//! files of the agent. Every start is a container of its own: it is made while the old one still runs, then the old one is stopped,
//! the new one started, the old one removed. Wherever that is cut off, the labels tell how to go on, and no engine
//! starts a container by itself that was stopped.

use super::config::{self, IDENTITY, Site};
use super::engine::{Engine, EngineError, Question};
use super::events::Events;
use super::found::{self, Container};
use super::image::Image;
use super::refusals;
use super::tallies::Tallies;
use super::tally::Tally;
use crate::agent::artifact::{FetchError, Fetched};
use crate::agent::backend::{Backend, BackendError, Checked, Folders, Found, Launch, Pending};
use crate::agent::process::identity::Identity;
use crate::agent::process::spec::{Artifact, BackendKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::Mutex;
use tracing::{debug, info, warn};

/// Longest time for making, starting or removing a container, on a slow device with a slow disk.
const ACTION_TIMEOUT: Duration = Duration::from_secs(120);
/// A name that somebody else's container has is given up for another one, so many times.
const NAMES: u64 = 8;
/// Longest chain of symbolic links that is followed to a program.
const MAX_LINKS: usize = 8;
/// The header with what is known about a path, JSON in base64.
const PATH_STAT_HEADER: &str = "x-docker-container-path-stat";

/// Where the engine is, and how it is used on this device.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its socket.
    pub socket: PathBuf,
    /// The network of containers: `host`, `bridge`, `none` or one of the engine's by its name.
    pub network: String,
    /// A docker config file with credentials for registries.
    pub registry_config: Option<PathBuf>,
}

/// Processes as containers.
#[derive(Debug)]
pub struct Containers {
    pub(super) engine: Engine,
    pub(super) options: Options,
    /// Whose containers are ours.
    device: String,
    tallies: Tallies,
    events: Mutex<Events>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

// === What others ask for ===

impl Backend for Containers {
    fn kind(&self) -> BackendKind {
        BackendKind::Container
    }

    fn probe(&self) -> Pending<'_, Result<(), BackendError>> {
        Box::pin(async { Ok(self.engine.ping().await?) })
    }

    fn list(&self) -> Pending<'_, Result<Vec<Found>, BackendError>> {
        Box::pin(async {
            let mut all: BTreeMap<Identity, Vec<Container>> = BTreeMap::new();
            for container in self.ours(None).await? {
                if let Some(identity) = container.identity() {
                    all.entry(identity).or_default().push(container);
                }
            }
            let mut found = Vec::new();
            for (identity, containers) in all {
                found.extend(self.found(&identity, &containers).await?);
            }
            Ok(found)
        })
    }

    fn find<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<Option<Found>, BackendError>> {
        Box::pin(async move {
            let containers = self.ours(Some(identity)).await?;
            Ok(self.found(identity, &containers).await?)
        })
    }

    fn fetch<'a>(
        &'a self,
        artifact: &'a Artifact,
        pinned: Option<&'a str>,
    ) -> Option<Pending<'a, Result<Fetched, FetchError>>> {
        Some(Box::pin(self.fetch_image(artifact, pinned)))
    }

    fn install<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let containers = self.ours(Some(&launch.identity)).await?;
            self.prepare(launch, &containers, |_| true).await.map(|_| ())
        })
    }

    fn start<'a>(&'a self, launch: &'a Launch, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let containers = self.ours(Some(&launch.identity)).await?;
            // One that has run is not started again: its engine would count from the beginning, and what the last run
            // left in its file system would be found by the next.
            let fresh = self.prepare(launch, &containers, |c| !c.was_started()).await?;
            let identity = &launch.identity;
            for old in containers.iter().filter(|c| c.id != fresh && c.is_alive()) {
                self.halt(identity, old, grace).await?;
            }
            let path = format!("/containers/{fresh}/start");
            let started = self.act(Method::POST, &path).await;
            started.map_err(|error| self.explain(error, launch))?;
            // It runs. What is left to do is done again with the next start, and when artifacts are collected.
            if let Err(error) = self.tidy(identity, &containers, &fresh).await {
                warn!(%identity, %error, "cannot tidy up after the last container yet");
            }
            Ok(())
        })
    }

    fn stop<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(async move {
            for container in self.ours(Some(identity)).await?.iter().filter(|c| c.is_alive()) {
                self.halt(identity, container, grace).await?;
                // The engine may have started it again just before it heard of the stop.
                if let Some(after) = self.inspect(&container.id).await? {
                    self.mark_stopped(identity, &after).await?;
                }
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let containers = self.ours(Some(identity)).await?;
            // Those that run last: cut off before, this one is still known by them.
            for container in containers.iter().filter(|c| !c.is_alive()) {
                self.delete(&container.id).await?;
            }
            for container in containers.iter().filter(|c| c.is_alive()) {
                self.halt(identity, container, grace).await?;
                self.delete(&container.id).await?;
            }
            self.tallies.remove(identity);
            Ok(())
        })
    }

    fn check<'a>(
        &'a self,
        launch: &'a Launch,
        command: &'a [String],
        timeout: Duration,
    ) -> Pending<'a, Result<Checked, BackendError>> {
        Box::pin(async move {
            let containers = self.ours(Some(&launch.identity)).await?;
            match found::live(&containers).filter(|c| c.state.status == "running") {
                Some(container) => self.check_in(container, command, timeout).await,
                None => Ok(Checked::Failed("the container does not run".to_owned())),
            }
        })
    }

    fn changed(&self) -> Pending<'_, ()> {
        Box::pin(async {
            // Whoever drops this and comes again goes on with the same stream.
            self.events.lock().await.changed(&self.engine).await;
        })
    }

    fn collect<'a>(&'a self, keep: &'a HashSet<String>) -> Pending<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.collect_superseded().await {
                debug!(%error, "cannot look for containers that are superseded");
            }
            let collected = match self.of_any(None).await {
                // What the agent of another device needs only that one knows.
                Ok(all) if all.iter().any(|c| !c.is_of(&self.device)) => Ok(()),
                Ok(_) => self.collect_images(keep).await,
                Err(error) => Err(error),
            };
            if let Err(error) = collected {
                debug!(%error, "cannot look for images that nobody needs any more");
            }
        })
    }
}

// === What is there ===

impl Containers {
    /// Nobody is asked yet.
    #[must_use]
    pub fn new(folders: &Folders, options: Options) -> Self {
        Self {
            engine: Engine::new(options.socket.clone()),
            options,
            device: folders.device.clone(),
            tallies: Tallies::new(folders.state.join("containers")),
            events: Mutex::default(),
        }
    }

    /// The containers with our marks: of one identity, or all.
    async fn ours(&self, identity: Option<&Identity>) -> Result<Vec<Container>, EngineError> {
        let mut containers = self.of_any(identity).await?;
        containers.retain(|c| c.is_of(&self.device));
        Ok(containers)
    }

    /// The same, whatever device they run for.
    async fn of_any(&self, identity: Option<&Identity>) -> Result<Vec<Container>, EngineError> {
        let label = identity.map_or_else(|| IDENTITY.to_owned(), |identity| format!("{IDENTITY}={identity}"));
        let path = format!("/containers/json?all=1&{}", config::filters(&json!({"label": [label]})));
        let listed: Vec<Listed> = self.engine.ask(Question::new(Method::GET, &path)).await?;
        let mut containers = Vec::with_capacity(listed.len());
        for Listed { id } in listed {
            containers.extend(self.inspect(&id).await?);
        }
        // Never trust a filter with what may be deleted.
        containers.retain(|c| c.identity().is_some_and(|found| identity.is_none_or(|wanted| found == *wanted)));
        Ok(containers)
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, EngineError> {
        let path = format!("/containers/{id}/json");
        EngineError::or_none(self.engine.ask(Question::new(Method::GET, &path)).await)
    }

    async fn found(&self, identity: &Identity, containers: &[Container]) -> Result<Option<Found>, EngineError> {
        let tally = match found::live(containers) {
            Some(live) => self.count(identity, live).await?,
            None if containers.is_empty() => return Ok(None),
            None => self.tallies.get(identity),
        };
        Ok(found::found(identity, containers, &tally))
    }

    /// Takes up how often the container that runs, or ran last, has ended.
    async fn count(&self, identity: &Identity, live: &Container) -> Result<Tally, EngineError> {
        let mut tally = self.tallies.get(identity);
        if tally.take(live) {
            // The engine has it among its last events only, and forgets them when it ends.
            tally.last_exit = super::events::last_exit(&self.engine, &live.id).await?;
        }
        self.tallies.set(identity, &tally);
        Ok(tally)
    }
}

// === What is done ===

impl Containers {
    /// The id of a container for `launch` that will do. Makes one if the one that is installed will not.
    async fn prepare(
        &self,
        launch: &Launch,
        containers: &[Container],
        will_do: impl Fn(&Container) -> bool,
    ) -> Result<String, BackendError> {
        if launch.artifact.root.is_some() {
            return Err(BackendError::Refused(super::fetch::ONLY_IMAGES.to_owned()));
        }
        let theirs = self.of_any(Some(&launch.identity)).await?;
        if let Some(theirs) = theirs.iter().find(|c| !c.is_of(&self.device)) {
            return Err(BackendError::Refused(format!(
                "a container of {} is there already and belongs to the agent of device {}",
                launch.identity,
                theirs.device()
            )));
        }
        // The name of the one that runs must be ours, too.
        if self.inspect(launch.identity.as_str()).await?.is_some_and(|named| named.identity().is_none()) {
            let why =
                format!("a container named {} is there that is not the agent's: remove or rename it", launch.identity);
            return Err(BackendError::Refused(why));
        }
        // What was made and never started is of no use when it is for something else.
        let (useless, useful): (Vec<_>, Vec<_>) =
            containers.iter().partition(|c| !c.was_started() && !c.is_for(launch));
        for container in useless {
            self.delete(&container.id).await?;
        }
        if let Some(installed) = useful.iter().max_by_key(|c| c.sequence()).filter(|c| c.is_for(launch) && will_do(c)) {
            return Ok(installed.id.clone());
        }
        // Its image is there as long as one of its containers is, whoever removes tags.
        let image = match useful.iter().find(|c| c.is_for(launch) && !c.image.is_empty()) {
            Some(container) => container.image.clone(),
            None => self.image_of(&launch.artifact.digest).await?,
        };
        let last = containers.iter().map(Container::sequence).max().unwrap_or(0);
        let id = self.create(launch, &image, last + 1).await?;
        if let Err(error) = self.verify(&id, launch).await {
            self.delete(&id).await?;
            return Err(error);
        }
        Ok(id)
    }

    /// The id of the image with a digest.
    async fn image_of(&self, digest: &str) -> Result<String, BackendError> {
        match self.tagged(digest).await? {
            Some(Image { id, .. }) => Ok(id),
            None => Err(BackendError::Failed(format!("the container engine has lost the image {digest}"))),
        }
    }

    async fn create(&self, launch: &Launch, image: &str, first: u64) -> Result<String, BackendError> {
        let mut init = self.engine.about().await?.has_init;
        let mut sequence = first;
        while sequence < first + NAMES {
            let body = config::create(
                launch,
                image,
                sequence,
                Site { network: &self.options.network, device: &self.device, init },
            )?;
            let name = config::name(launch, sequence);
            let path = format!("/containers/create?name={name}");
            let question = Question::new(Method::POST, &path).with(&body).within(ACTION_TIMEOUT);
            match self.engine.ask::<Created>(question).await {
                Ok(Created { id }) => {
                    info!(container = name, image = launch.artifact.digest, "container made");
                    return Ok(id);
                }
                // The name is somebody else's: ours would have been found by its labels.
                Err(error) if error.status() == Some(409) => {
                    debug!(container = name, %error, "the name is taken");
                    sequence += 1;
                }
                // As Podman says it. Without an init process the program itself has to heed SIGTERM.
                Err(error) if init && error.to_string().contains("init binary not found") => init = false,
                Err(error) => return Err(self.explain(error, launch)),
            }
        }
        Err(BackendError::Failed(format!("other containers have the names that {} would get", launch.identity)))
    }

    /// Whether the image has the program and the user. Docker says so only when the container is started, and with an
    /// init process not even then; by that time the old one has been stopped.
    async fn verify(&self, id: &str, launch: &Launch) -> Result<(), BackendError> {
        let Some(container) = self.inspect(id).await? else { return Ok(()) };
        let found = &container.config;
        let mut verdict = Some(refusals::no_program(&launch.program));
        for path in refusals::candidates(&launch.program, &found.env, &found.working_dir) {
            match self.mode(id, path).await {
                Ok(Some(mode)) => {
                    verdict = refusals::no_executable(&launch.program, mode);
                    if verdict.is_none() {
                        break;
                    }
                }
                Ok(None) => {}
                // An engine that cannot tell is no reason to refuse anything.
                Err(EngineError::Refused { .. } | EngineError::Strange(..)) => {
                    verdict = None;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(why) = verdict {
            return Err(BackendError::Refused(why));
        }
        let Some(user) = &launch.user else { return Ok(()) };
        let (name, group) = user.split_once(':').map_or((user.as_str(), None), |(name, group)| (name, Some(group)));
        for (name, file) in [(Some(name), "/etc/passwd"), (group, "/etc/group")] {
            if let Some(name) = name.filter(|name| name.parse::<u32>().is_err())
                && !self.has_entry(id, file, name).await?
            {
                return Err(BackendError::Refused(format!("{} ({file})", refusals::no_user(user))));
            }
        }
        Ok(())
    }

    /// The mode of a file in a container, behind any symbolic links; none: there is none.
    async fn mode(&self, id: &str, mut path: String) -> Result<Option<u32>, EngineError> {
        for _ in 0..MAX_LINKS {
            let route = format!("/containers/{id}/archive?path={}", config::escape(&path));
            let Some(headers) = EngineError::or_none(self.engine.look(&route).await)? else { return Ok(None) };
            let stat = headers.get(PATH_STAT_HEADER).and_then(|value| STANDARD.decode(value).ok());
            let stat: Option<refusals::PathStat> = stat.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match stat {
                Some(stat) if refusals::is_link(stat.mode) && stat.link_target != path => path = stat.link_target,
                Some(stat) => return Ok(Some(stat.mode)),
                None => break,
            }
        }
        Err(EngineError::Strange(self.options.socket.display().to_string(), "does not tell about paths".to_owned()))
    }

    async fn has_entry(&self, id: &str, file: &str, name: &str) -> Result<bool, EngineError> {
        let route = format!("/containers/{id}/archive?path={}", config::escape(file));
        let archive = EngineError::or_none(self.engine.raw(Question::new(Method::GET, &route)).await)?;
        let Some(archive) = archive else { return Ok(false) };
        // Not a plain file: let the engine find out.
        Ok(refusals::only_file(&archive).is_none_or(|text| refusals::has_entry(&String::from_utf8_lossy(text), name)))
    }

    /// Stops a container that may run. Its name says so first: an end that comes after that was asked for.
    async fn halt(&self, identity: &Identity, container: &Container, grace: Duration) -> Result<(), BackendError> {
        let id = &container.id;
        if container.state.status == "paused" {
            self.act(Method::POST, &format!("/containers/{id}/unpause")).await?;
        }
        self.mark_stopped(identity, container).await?;
        if container.host_config.restart_policy.name != config::NO_RESTART {
            let (path, body) = (format!("/containers/{id}/update"), config::no_restart());
            let question = Question::new(Method::POST, &path).with(&body);
            match self.engine.ask::<Value>(question).await {
                // Podman cannot do it; it does not start what was stopped either.
                Err(EngineError::Refused { status, message }) if status != 404 => {
                    debug!(message, "restart policy stays")
                }
                result => _ = EngineError::or_none(result)?,
            }
        }
        // The engine counts whole seconds.
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let path = format!("/containers/{id}/stop?t={seconds}");
        let question = Question::new(Method::POST, &path).within(grace + ACTION_TIMEOUT);
        EngineError::or_none(self.engine.ask::<Value>(question).await)?;
        Ok(())
    }

    async fn mark_stopped(&self, identity: &Identity, container: &Container) -> Result<(), EngineError> {
        let Some(started) = container.started_nanos().filter(|_| !container.is_being_stopped()) else { return Ok(()) };
        let new = config::stopped_name(identity, started);
        let renamed = self.act(Method::POST, &format!("/containers/{}/rename?name={new}", container.id)).await;
        // A call that was cut off may have come before this one.
        match renamed {
            Err(error) if matches!(error, EngineError::Refused { .. }) => match self.inspect(&container.id).await? {
                Some(now) if !now.is_being_stopped() => Err(error),
                _ => Ok(()),
            },
            result => result,
        }
    }

    /// After a start: the ends of the old one are counted, it is removed, and the new one gets the name.
    async fn tidy(&self, identity: &Identity, old: &[Container], fresh: &str) -> Result<(), EngineError> {
        if let Some(last) = found::live(old).filter(|last| last.id != fresh)
            && let Some(last) = self.inspect(&last.id).await?
        {
            self.count(identity, &last).await?;
        }
        for container in old.iter().filter(|c| c.id != fresh) {
            self.delete(&container.id).await?;
        }
        self.act(Method::POST, &format!("/containers/{fresh}/rename?name={identity}")).await
    }

    /// Removes a container, and returns when it is gone.
    async fn delete(&self, id: &str) -> Result<(), EngineError> {
        // With the volumes that its image has asked for and nobody has named.
        let path = format!("/containers/{id}?force=1&v=1");
        let removed = self.engine.ask::<Value>(Question::new(Method::DELETE, &path).within(ACTION_TIMEOUT)).await;
        match removed {
            // It is being removed already, for somebody who has not waited.
            Err(error) if error.status() == Some(409) => {
                let path = format!("/containers/{id}/wait?condition=removed");
                let waited = self.engine.ask::<Value>(Question::new(Method::POST, &path).within(ACTION_TIMEOUT)).await;
                EngineError::or_none(waited).map(|_| ())
            }
            result => EngineError::or_none(result).map(|_| ()),
        }
    }

    /// What needs no answer. Of what is gone already there is nothing to do, but a start.
    async fn act(&self, method: Method, path: &str) -> Result<(), EngineError> {
        match self.engine.ask::<Value>(Question::new(method, path).within(ACTION_TIMEOUT)).await {
            Err(error) if error.status() == Some(404) && !path.ends_with("/start") => Ok(()),
            result => result.map(|_| ()),
        }
    }

    fn explain(&self, error: EngineError, launch: &Launch) -> BackendError {
        match error {
            EngineError::Refused { message, .. } => refusals::explain(&message, launch, &self.options.network),
            error => error.into(),
        }
    }

    /// Does what a start that was cut off has left: older containers beside one that runs, and its name.
    async fn collect_superseded(&self) -> Result<(), EngineError> {
        let all = self.ours(None).await?;
        for running in all.iter().filter(|c| c.is_alive()) {
            let Some(identity) = running.identity() else { continue };
            let older = |c: &&Container| {
                c.identity().as_ref() == Some(&identity) && c.sequence() < running.sequence() && !c.is_alive()
            };
            let older: Vec<Container> = all.iter().filter(older).cloned().collect();
            // One that is being stopped keeps the name that says so.
            if !running.is_being_stopped() && (!older.is_empty() || running.plain_name() != identity.as_str()) {
                self.tidy(&identity, &older, &running.id).await?;
            }
        }
        Ok(())
    }
}

impl From<EngineError> for BackendError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Away(..) | EngineError::Strange(..) => Self::Unavailable(error.to_string()),
            EngineError::Refused { message, .. } => {
                Self::Failed(format!("the container engine: {}", refusals::without_ids(&message)))
            }
        }
    }
}
