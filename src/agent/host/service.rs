//! Pure: what starts the agent when the device starts: a unit of systemd, or an init script.

use super::settings::MARK;

/// Name of the service, of its unit and of its script.
pub const NAME: &str = "praetor-agent";

/// What starts services on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Init {
    /// A unit of systemd
    Systemd,
    /// A script in /etc/init.d, and links in the folders of the runlevels
    Initd,
}

// === impl Init ===

impl Init {
    /// Where the unit or the script is.
    #[must_use]
    pub fn path(self) -> String {
        match self {
            Self::Systemd => format!("/etc/systemd/system/{NAME}.service"),
            Self::Initd => format!("/etc/init.d/{NAME}"),
        }
    }

    /// Permissions of that file.
    #[must_use]
    pub fn mode(self) -> u32 {
        match self {
            Self::Systemd => 0o644,
            Self::Initd => 0o755,
        }
    }

    /// The file itself. `binary` and `settings` are absolute paths of plain characters.
    #[must_use]
    pub fn render(self, binary: &str, settings: &str) -> String {
        match self {
            Self::Systemd => unit(binary, settings),
            Self::Initd => script(binary, settings),
        }
    }
}

/// Whether a path can stand in a unit, a script and a settings file as it is.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.chars().all(|c| c.is_ascii_alphanumeric() || "/._+@:,-".contains(c))
}

fn unit(binary: &str, settings: &str) -> String {
    format!(
        "{MARK}, which writes it anew at the next call. What is yours belongs into
# {settings}, or into praetor-agent.service.d/*.conf beside this file.
[Unit]
Description=Praetor device agent
# Not network-online.target: it starts processes from its state file before there is a network, or without one.
After=network.target
StartLimitIntervalSec=0

[Service]
ExecStart={binary} --settings-file={settings}
Restart=always
RestartSec=2
# The end of the agent is the end of nothing else: what it has started goes on, and the next start finds it.
KillMode=process
OOMPolicy=continue
TasksMax=infinity
# No limits and no sandbox: children would inherit them (health checks, and with init scripts the processes themselves).

[Install]
WantedBy=multi-user.target
"
    )
}

fn script(binary: &str, settings: &str) -> String {
    SCRIPT.replace("@MARK@", MARK).replace("@BINARY@", binary).replace("@SETTINGS@", settings)
}

/// Plain sh, for dash and busybox. It supervises the agent, as nothing else would. Ending it ends the agent alone: the
/// signal goes to one process, never to a group.
const SCRIPT: &str = r#"#!/bin/sh
### BEGIN INIT INFO
# Provides:          praetor-agent
# Required-Start:    $local_fs
# Required-Stop:     $local_fs
# Should-Start:      $network $syslog
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: Praetor device agent
# Description:       Runs what the gateway says this device should run.
### END INIT INFO
@MARK@, which writes it anew at the next call. What is yours belongs
# into @SETTINGS@.
agent=@BINARY@
settings=@SETTINGS@
pidfile=/run/praetor-agent.pid
[ -d /run ] || pidfile=/var/run/praetor-agent.pid
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

# The process id of the supervisor, if that is what has it.
supervisor() {
  pid="$(cat "$pidfile" 2>/dev/null)" || return 1
  case "$pid" in '' | *[!0-9]*) return 1 ;; esac
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'praetor-agent supervise' && echo "$pid"
}

case "${1:-}" in
  start)
    if supervisor >/dev/null; then
      echo "praetor-agent runs already"
      exit 0
    fi
    [ -x "$agent" ] || { echo "praetor-agent: $agent is missing or no program" >&2; exit 5; }
    rm -f "$pidfile"
    # A session of its own, so that the end of this terminal is not the agent's.
    setsid=
    command -v setsid >/dev/null && setsid=setsid
    if command -v logger >/dev/null; then
      # shellcheck disable=SC2016 # $0 is for the inner shell
      $setsid /bin/sh -c '/bin/sh "$0" supervise 2>&1 | exec logger -t praetor-agent' "$0" </dev/null >/dev/null 2>&1 &
    else
      $setsid /bin/sh "$0" supervise </dev/null >/dev/null 2>&1 &
    fi
    tries=0
    until supervisor >/dev/null; do
      tries=$((tries + 1))
      [ "$tries" -le 5 ] || { echo "praetor-agent did not start" >&2; exit 1; }
      sleep 1
    done
    ;;
  supervise)
    child=
    trap 'trap "" TERM; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null; [ -z "$child" ] || wait "$child"; rm -f "$pidfile"; exit 0' TERM INT
    echo "$$" >"$pidfile"
    while :; do
      "$agent" --settings-file="$settings" &
      child=$!
      wait "$child"
      child=
      sleep 5
    done
    ;;
  stop)
    pid="$(supervisor)" || { echo "praetor-agent does not run"; exit 0; }
    kill -TERM "$pid"
    tries=0
    while supervisor >/dev/null; do
      tries=$((tries + 1))
      [ "$tries" -le 10 ] || { echo "praetor-agent does not end" >&2; exit 1; }
      sleep 1
    done
    ;;
  restart | force-reload)
    /bin/sh "$0" stop && /bin/sh "$0" start
    ;;
  status)
    if pid="$(supervisor)"; then
      echo "praetor-agent runs (supervisor $pid)"
    else
      echo "praetor-agent does not run"
      exit 3
    fi
    ;;
  *)
    echo "usage: $0 start|stop|restart|force-reload|status" >&2
    exit 2
    ;;
esac
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_start_the_same_command() {
        let unit = Init::Systemd.render("/usr/local/bin/praetor-agent", "/etc/apollo/agent.env");
        assert!(unit.starts_with(MARK), "{unit}");
        assert!(unit.contains("\nExecStart=/usr/local/bin/praetor-agent --settings-file=/etc/apollo/agent.env\n"));
        for line in ["KillMode=process", "Restart=always", "After=network.target", "WantedBy=multi-user.target"] {
            assert!(unit.lines().any(|l| l == line), "{line}");
        }
        let script = Init::Initd.render("/usr/local/bin/praetor-agent", "/etc/apollo/agent.env");
        assert!(script.starts_with("#!/bin/sh\n") && script.contains(MARK) && !script.contains('@'), "{script}");
        assert!(script.contains("\nagent=/usr/local/bin/praetor-agent\nsettings=/etc/apollo/agent.env\n"));
    }

    #[test]
    fn only_plain_paths() {
        assert!(is_plain("/usr/local/bin/praetor-agent") && is_plain("/opt/x_1.2+3@a/b"));
        for path in ["", "a", "/a b", "/a%i", "/a$b", "/a'b", "/a\\b", "/a\nb", "/ä", "/a;b", "/a\"b"] {
            assert!(!is_plain(path), "{path}");
        }
    }
}
