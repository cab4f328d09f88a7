//! Pure: which of some members works for a device: the one with the highest weight for it (rendezvous hashing).
//!
//! Every replica must come to the same answer whatever machine, build or Rust it runs on, so the hash is fixed here
//! and held by golden vectors; changing it means a new [`super::members::PROTOCOL`].

use super::members::{Member, View};
use siphasher::sip::SipHasher24;
use std::sync::Arc;

/// Two keys, so that a device and a member of one name have nothing to do with each other.
const DEVICE_KEY: &[u8; 16] = b"praetor-device-1";
const MEMBER_KEY: &[u8; 16] = b"praetor-member-1";

/// No member: the view was empty.
const NOBODY: u16 = u16::MAX;

/// The device as all tables of replicas and messages between them name it: `SipHash-2-4` of its name.
#[must_use]
pub fn device_hash(device: &str) -> u64 {
    SipHasher24::new_with_key(DEVICE_KEY).hash(device.as_bytes())
}

/// A member's part of its weights: `SipHash-2-4` of its identity. A restart changes nothing.
#[must_use]
pub fn member_hash(identity: &str) -> u64 {
    SipHasher24::new_with_key(MEMBER_KEY).hash(identity.as_bytes())
}

/// How much a member wants a device; both as hashes. Two members never want a device equally unless their hashes are
/// equal, since for a device this is a bijection (the finalizer of `MurmurHash3`).
#[must_use]
pub fn weight(member: u64, device: u64) -> u64 {
    let mut mixed = member ^ device;
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

/// The position of the member that works for a device; none when there are no members. Among members that are
/// sorted by identity the first of two with equal weights wins.
#[must_use]
pub fn choose(members: &[Member], device: u64) -> Option<usize> {
    let mut best: Option<(u64, usize)> = None;
    for (position, member) in members.iter().enumerate() {
        let weight = weight(member.hash, device);
        if best.is_none_or(|(most, _)| weight > most) {
            best = Some((weight, position));
        }
    }
    best.map(|(_, position)| position)
}

/// What a new view changed for this replica, by the positions of devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// Devices that this replica works for now and did not before.
    pub gained: Vec<usize>,
    /// Devices that it worked for before and does not now.
    pub lost: Vec<usize>,
    /// How many devices have another owner than before, whoever it is.
    pub moved: usize,
}

/// Who works for each device, by position. Devices are only ever added, in the order in which they came to be known
/// (that of the index); a new view costs a weight or two for a device whose owner stays, and a search only for those
/// whose owner is gone.
#[derive(Debug, Clone)]
pub struct Assignment {
    view: Arc<View>,
    devices: Vec<u64>,
    owners: Vec<u16>,
    mine: usize,
}

// === impl Assignment ===

impl Assignment {
    /// No devices, under a view.
    #[must_use]
    pub fn new(view: Arc<View>) -> Self {
        Self { view, devices: Vec::new(), owners: Vec::new(), mine: 0 }
    }

    /// The view that decides.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Adds the device of the next position, by its [`device_hash`].
    pub fn push(&mut self, device: u64) {
        let owner = slot(choose(&self.view.members, device));
        self.devices.push(device);
        self.owners.push(owner);
        self.mine += usize::from(self.is_my_slot(owner));
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The hash of the device at a position.
    #[must_use]
    pub fn device(&self, position: usize) -> Option<u64> {
        self.devices.get(position).copied()
    }

    /// Whether this replica works for the device at a position; false beyond the last one.
    #[must_use]
    pub fn is_mine(&self, position: usize) -> bool {
        self.owners.get(position).is_some_and(|owner| self.is_my_slot(*owner))
    }

    /// The member that works for the device at a position; none under a view of nobody (then this replica does).
    #[must_use]
    pub fn owner(&self, position: usize) -> Option<&Member> {
        self.view.members.get(usize::from(*self.owners.get(position)?))
    }

    /// How many devices this replica works for.
    #[must_use]
    pub fn mine(&self) -> usize {
        self.mine
    }

    /// Goes over to a new view; cheap when it is the one that decides already.
    pub fn apply(&mut self, view: &Arc<View>) -> Moved {
        let mut change = Moved::default();
        if Arc::ptr_eq(&self.view, view) {
            return change;
        }
        let before = std::mem::replace(&mut self.view, view.clone());
        let members = &view.members;
        // Both are sorted by identity. A member with another hash than before counts as gone and come.
        let stays = |old: &Member| members.binary_search_by(|new| new.identity.cmp(&old.identity)).ok();
        let place: Vec<Option<u16>> = (before.members.iter())
            .map(|old| stays(old).filter(|new| members[*new].hash == old.hash).map(|new| slot(Some(new))))
            .collect();
        let come: Vec<(u16, u64)> = (members.iter().enumerate())
            .map(|(position, member)| (slot(Some(position)), member.hash))
            .filter(|(position, _)| !place.contains(&Some(*position)))
            .collect();
        self.mine = 0;
        for (position, (owner, device)) in self.owners.iter_mut().zip(&self.devices).enumerate() {
            let was = *owner;
            let was_mine = is_mine(&before, was);
            let stays = place.get(usize::from(was)).copied().flatten();
            *owner = match stays {
                Some(stays) if come.is_empty() => stays,
                Some(stays) => {
                    let mut best = (weight(members[usize::from(stays)].hash, *device), stays);
                    for (candidate, hash) in &come {
                        let weight = weight(*hash, *device);
                        // Members' order decides between equals, as it does in `choose`.
                        if weight > best.0 || (weight == best.0 && *candidate < best.1) {
                            best = (weight, *candidate);
                        }
                    }
                    best.1
                }
                None => slot(choose(members, *device)),
            };
            change.moved += usize::from(stays != Some(*owner) && !(was == NOBODY && *owner == NOBODY));
            match (was_mine, is_mine(view, *owner)) {
                (false, true) => change.gained.push(position),
                (true, false) => change.lost.push(position),
                _ => {}
            }
            self.mine += usize::from(is_mine(view, *owner));
        }
        change
    }

    fn is_my_slot(&self, owner: u16) -> bool {
        is_mine(&self.view, owner)
    }
}

/// Under a view of nobody everything is mine.
fn is_mine(view: &View, owner: u16) -> bool {
    if owner == NOBODY { view.members.is_empty() } else { view.me == Some(usize::from(owner)) }
}

fn slot(position: Option<usize>) -> u16 {
    position.and_then(|position| u16::try_from(position).ok()).unwrap_or(NOBODY)
}

#[cfg(test)]
#[path = "rendezvous_tests.rs"]
mod tests;
