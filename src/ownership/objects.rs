//! Pure: members and the lead as Lease objects.
//!
//! Times in them are for people; whoever decides looks only at whether a Lease changes.

use super::lease::{Holder, Record};
use super::members::{Member, PROTOCOL, Sighting};
use super::rendezvous::member_hash;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The Lease of the lead.
pub const LEADER: &str = "praetor-leader";
/// Selects the Leases of the lead and of all members.
pub const SELECTOR: &str = "app.kubernetes.io/part-of=praetor,apollo.azure.com/lease in (leader,member)";

const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "praetor");
const ROLE: &str = "apollo.azure.com/lease";
const MEMBER: &str = "member";
const INCARNATION: &str = "apollo.azure.com/incarnation";
const ADDRESS: &str = "apollo.azure.com/peer-address";
const HASH: &str = "apollo.azure.com/hash";
const PROTOCOL_VERSION: &str = "apollo.azure.com/protocol";
const CRASHES: &str = "apollo.azure.com/crashes";

const MEMBER_PREFIX: &str = "praetor-member-";
const ODD_PREFIX: &str = "praetor-member.";
/// Longer identities, and such as are no names of objects, are shortened and hashed.
const LONGEST: usize = 200;
const SHORT: usize = 40;
/// Longest delay before a replica that keeps dying joins again, seconds.
const LONGEST_DELAY: u64 = 60;

/// The name of a member's Lease: tells the identity as far as names can, and is another one for another identity.
#[must_use]
pub fn member_name(identity: &str) -> String {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = |text: &str| text.bytes().next().is_some_and(fits) && text.bytes().last().is_some_and(fits);
    let label = |text: &str| edges(text) && text.bytes().all(|byte| fits(byte) || byte == b'-');
    if identity.len() <= LONGEST && identity.split('.').all(label) {
        return format!("{MEMBER_PREFIX}{identity}");
    }
    let readable: String = (identity.chars().map(|c| c.to_ascii_lowercase()))
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
        .take(SHORT)
        .collect();
    let hash = hex::encode(&Sha256::digest(identity.as_bytes())[..8]);
    // After a dot: no identity that fits is taken for one that does not.
    match readable.trim_matches('-') {
        "" => format!("{ODD_PREFIX}{hash}"),
        readable => format!("{ODD_PREFIX}{readable}-{hash}"),
    }
}

/// How long a replica that has died so many times in a row waits before it joins, seconds: 0, 0, 1, 2, 4 … 60.
#[must_use]
pub fn join_delay_seconds(crashes: u32) -> u64 {
    match crashes {
        0 | 1 => 0,
        more => 1_u64.checked_shl(more - 2).map_or(LONGEST_DELAY, |delay| delay.min(LONGEST_DELAY)),
    }
}

/// The resourceVersion of a Lease. Versions of one object are numbers that grow.
#[must_use]
pub fn version(lease: &Lease) -> Option<u64> {
    lease.metadata.resource_version.as_deref()?.parse().ok()
}

/// What the Lease of the lead says; none when it has no readable version.
#[must_use]
pub fn record(lease: &Lease) -> Option<Record> {
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|identity| !identity.is_empty());
    let term = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    Some(Record {
        version: version(lease)?,
        holder: holder.map(|identity| Holder { identity: identity.into(), incarnation: incarnation(lease) }),
        term: u64::try_from(term).unwrap_or(0),
    })
}

/// The member of a Lease; none when it is another kind of Lease, or lacks what a member needs.
#[must_use]
pub fn sighting(lease: &Lease) -> Option<Sighting> {
    let role = lease.metadata.labels.as_ref().and_then(|labels| labels.get(ROLE));
    let identity = lease.spec.as_ref()?.holder_identity.as_deref().filter(|identity| !identity.is_empty())?;
    let incarnation = incarnation(lease);
    if role.is_none_or(|role| role != MEMBER) || incarnation == 0 {
        return None;
    }
    Some(Sighting {
        name: lease.metadata.name.as_deref()?.into(),
        uid: lease.metadata.uid.as_deref()?.into(),
        version: version(lease)?,
        member: Member {
            identity: identity.into(),
            incarnation,
            address: annotation(lease, ADDRESS).and_then(|text| text.parse().ok()),
            hash: member_hash(identity),
            protocol: annotation(lease, PROTOCOL_VERSION).and_then(|text| text.parse().ok()).unwrap_or(PROTOCOL),
        },
    })
}

/// Whether the member of a Lease shares devices out as this replica does.
#[must_use]
pub fn hashes_alike(lease: &Lease, member: &Member) -> bool {
    annotation(lease, HASH).is_none_or(|text| text == hash(member.hash))
}

/// The incarnation in a Lease; 0 when there is none.
#[must_use]
pub fn incarnation(lease: &Lease) -> u64 {
    annotation(lease, INCARNATION).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0)
}

/// How often in a row the member of a Lease has died.
#[must_use]
pub fn crashes(lease: &Lease) -> u32 {
    annotation(lease, CRASHES).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A number as annotations and log lines show it.
#[must_use]
pub fn hash(number: u64) -> String {
    format!("{number:016x}")
}

/// The Lease of the lead, without version and uid: held by somebody since `acquired`, or by nobody.
#[must_use]
pub fn leader_lease(holder: Option<&Holder>, term: u64, acquired: Timestamp, now: Timestamp) -> Lease {
    let annotations = holder.map(|holder| (INCARNATION.to_owned(), hash(holder.incarnation)));
    Lease {
        metadata: ObjectMeta {
            name: Some(LEADER.to_owned()),
            labels: Some(labels("leader")),
            annotations: Some(annotations.into_iter().collect()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            // Empty, as client-go leaves it behind.
            holder_identity: Some(holder.map_or_else(String::new, |holder| holder.identity.to_string())),
            lease_duration_seconds: Some(if holder.is_some() { 15 } else { 1 }),
            lease_transitions: Some(i32::try_from(term).unwrap_or(i32::MAX)),
            acquire_time: Some(MicroTime(acquired)),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// The Lease of a member, without version and uid.
#[must_use]
pub fn member_lease(member: &Member, crashes: u32, joined: Timestamp, now: Timestamp) -> Lease {
    let mut annotations = BTreeMap::from([
        (INCARNATION.to_owned(), hash(member.incarnation)),
        (HASH.to_owned(), hash(member.hash)),
        (PROTOCOL_VERSION.to_owned(), member.protocol.to_string()),
        (CRASHES.to_owned(), crashes.to_string()),
    ]);
    if let Some(address) = member.address {
        annotations.insert(ADDRESS.to_owned(), address.to_string());
    }
    Lease {
        metadata: ObjectMeta {
            name: Some(member_name(&member.identity)),
            labels: Some(labels(MEMBER)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(member.identity.to_string()),
            lease_duration_seconds: Some(15),
            acquire_time: Some(MicroTime(joined)),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

fn labels(role: &str) -> BTreeMap<String, String> {
    [PART_OF, (ROLE, role)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn annotation<'a>(lease: &'a Lease, key: &str) -> Option<&'a str> {
    lease.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(mut lease: Lease, version: u64) -> Lease {
        lease.metadata.resource_version = Some(version.to_string());
        lease.metadata.uid = Some("u-1".to_owned());
        lease
    }

    #[test]
    fn a_member_comes_back_as_it_was() {
        let now = Timestamp::UNIX_EPOCH;
        for address in [None, Some("10.0.0.7:8082".parse().unwrap()), Some("[fd00::7]:8082".parse().unwrap())] {
            let member = Member::new("praetor-manager-0", 0x1f, address);
            let lease = stored(member_lease(&member, 3, now, now), 77);
            let sighting = sighting(&lease).unwrap();
            assert_eq!((&sighting.member, sighting.version, &*sighting.uid), (&member, 77, "u-1"));
            assert_eq!(&*sighting.name, "praetor-member-praetor-manager-0");
            assert_eq!((crashes(&lease), incarnation(&lease)), (3, 0x1f));
            assert!(hashes_alike(&lease, &member));
            assert_eq!(lease.metadata.annotations.unwrap()[INCARNATION], "000000000000001f");
        }
    }

    #[test]
    fn the_lead_comes_back_as_it_was() {
        let now = Timestamp::UNIX_EPOCH;
        let holder = Holder { identity: "a".into(), incarnation: u64::MAX };
        let lease = stored(leader_lease(Some(&holder), 5, now, now), 78);
        assert_eq!(record(&lease), Some(Record { version: 78, holder: Some(holder), term: 5 }));
        assert_eq!(sighting(&lease), None);
        let lease = stored(leader_lease(None, 5, now, now), 79);
        assert_eq!(record(&lease), Some(Record { version: 79, holder: None, term: 5 }));
        // Made by hand, or by another program.
        assert_eq!(record(&Lease::default()), None);
        let bare = record(&stored(Lease::default(), 80)).unwrap();
        assert_eq!((bare.holder, bare.term), (None, 0));
    }

    #[test]
    fn delays_grow() {
        let delays: Vec<_> = (0..10).map(join_delay_seconds).collect();
        assert_eq!(delays, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(join_delay_seconds(u32::MAX), 60);
    }

    #[test]
    fn names_are_readable() {
        assert_eq!(member_name("praetor-manager-7d9c5b8f6-x2k9q"), "praetor-member-praetor-manager-7d9c5b8f6-x2k9q");
        assert_eq!(member_name("host.example.org-4711"), "praetor-member-host.example.org-4711");
        assert_eq!(member_name("Host_1"), "praetor-member.host1-3ddeddef6cdf2e8f");
    }

    proptest! {
        #[test]
        fn names_are_names(identity in "\\PC{1,300}|[a-z0-9.-]{1,260}", other in "[a-zA-Z_]{1,5}") {
            let name = member_name(&identity);
            prop_assert!(name.len() <= 253);
            prop_assert!(crate::wire::name::is_device_name(name.as_bytes()), "{}", name);
            prop_assert!(identity == other || name != member_name(&other));
        }
    }
}
