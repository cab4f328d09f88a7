//! Pure: users and their groups, from the texts of `/etc/passwd` and `/etc/group`.
//!
//! Accounts that only a directory service knows are not found: a device that depends on the network to start its
//! processes is not what an operator wants.

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// Its name; a number without an account has none.
    pub name: Option<String>,
    /// Its number.
    pub uid: u32,
    /// Its own group.
    pub gid: u32,
    /// All its groups, its own included.
    pub groups: Vec<u32>,
    /// Its home.
    pub home: Option<String>,
}

/// No such user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("execution.user: the device has no user {0:?}")]
pub struct NoUser(String);

// === impl User ===

impl User {
    /// The user of this name, or else of this number. A number without an account is good, too: its group has the same
    /// number then.
    ///
    /// # Errors
    /// Neither a name that is there nor a number.
    pub fn find(wanted: &str, passwd: &str, group: &str) -> Result<Self, NoUser> {
        let accounts = || passwd.lines().filter_map(account);
        let number: Option<u32> = wanted.parse().ok().filter(|_| wanted.bytes().all(|c| c.is_ascii_digit()));
        let found = accounts()
            .find(|account| account.name.as_deref() == Some(wanted))
            .or_else(|| number.and_then(|uid| accounts().find(|account| account.uid == uid)));
        let mut user = match (found, number) {
            (Some(user), _) => user,
            // The last number means "as before" to the kernel.
            (None, Some(uid)) if uid != u32::MAX => Self { name: None, uid, gid: uid, groups: vec![uid], home: None },
            _ => return Err(NoUser(wanted.to_owned())),
        };
        if let Some(name) = &user.name {
            let more = group.lines().filter_map(|line| member(line, name)).filter(|gid| *gid != user.gid);
            let mut more: Vec<u32> = more.collect();
            more.sort_unstable();
            more.dedup();
            user.groups.extend(more);
        }
        Ok(user)
    }

    /// Root, who needs no account.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// The variables that tell a program who it is.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let name = self.name.as_deref();
        [("USER", name), ("LOGNAME", name), ("HOME", self.home.as_deref())]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
    }
}

/// `name:password:uid:gid:comment:home:shell`
fn account(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = *fields else { return None };
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    let home = (!home.is_empty()).then(|| home.to_owned());
    (!name.is_empty()).then(|| User { name: Some(name.to_owned()), uid, gid, groups: vec![gid], home })
}

/// `name:password:gid:member,member`
fn member(line: &str, name: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, gid, members] = *fields else { return None };
    members.split(',').any(|member| member == name).then(|| gid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nagent:x:990:980::/var/lib/agent:/bin/false\n\
        7:x:1007:1007::/home/seven:\n+::::::\nlate:x:7:7::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,agent\nagent:x:980:agent\ndialout:x:20:x,agent,y\nodd:x:agent\nagentx:x:30:agentx\n";

    #[test]
    fn by_name_then_by_number() {
        let agent = User::find("agent", PASSWD, GROUP).unwrap();
        assert_eq!((agent.uid, agent.gid, agent.groups.clone()), (990, 980, vec![980, 10, 20]));
        let environment: Vec<_> = agent.environment().collect();
        assert_eq!(environment, [("USER", "agent"), ("LOGNAME", "agent"), ("HOME", "/var/lib/agent")]);
        assert_eq!(User::find("990", PASSWD, GROUP).unwrap(), agent);
        assert_eq!(User::find("7", PASSWD, GROUP).unwrap().uid, 1007);
        assert!(User::find("root", PASSWD, GROUP).unwrap().is_root());
        assert!(User::find("0", "", "").unwrap().is_root());
    }

    #[test]
    fn a_number_without_an_account_is_its_own_group() {
        let nobody = User::find("4242", PASSWD, GROUP).unwrap();
        assert_eq!(
            (nobody.uid, nobody.gid, nobody.groups.clone(), nobody.name.clone()),
            (4242, 4242, vec![4242], None)
        );
        assert_eq!(nobody.environment().count(), 0);
    }

    #[test]
    fn what_is_no_user_is_said() {
        for wanted in ["", "nosuch", "broken", "+", "-1", "+5", "4294967295", "4294967296", "agent ", "a:b"] {
            let error = User::find(wanted, PASSWD, GROUP).unwrap_err().to_string();
            assert_eq!(error, format!("execution.user: the device has no user {wanted:?}"));
        }
    }
}
