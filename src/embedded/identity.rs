//! Who runs PostgreSQL: it refuses root, so root hands it over or hides in a user namespace.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::EmbeddedError;

/// What our children see of the environment. Casebook's own holds passwords and keys, of no use to
/// PostgreSQL, and a stray PGDATA or PGPORT would change what it does. Messages stay English so
/// that we can read them.
const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin",
    ),
    ("LC_ALL", "C"),
];
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// A user of this machine.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// How PostgreSQL is run.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Identity {
    /// As ourselves.
    Own,
    /// We are root: as this user, who owns the cluster and the socket folder.
    Other(User),
    /// As ourselves, seen from inside as this user, so that the files stay ours.
    Namespace(User),
}

impl Identity {
    /// A command that runs as this identity, in a folder everyone can enter.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match self {
            Identity::Namespace(user) => {
                let mut command = Command::new("unshare");
                command
                    .arg("--user")
                    .arg(format!("--map-user={}", user.uid))
                    .arg(format!("--map-group={}", user.gid))
                    .arg("--")
                    .arg(program);
                command
            }
            Identity::Own | Identity::Other(_) => Command::new(program),
        };
        if let Identity::Other(user) = self {
            // The standard library drops the supplementary groups with the user.
            command.uid(user.uid).gid(user.gid);
        }
        command.env_clear().envs(ENVIRONMENT).current_dir("/").kill_on_drop(true);
        command
    }

    /// Gives a folder that we have just made to the user who will fill it.
    pub fn give(&self, folder: &Path) -> std::io::Result<()> {
        match self {
            Identity::Other(user) => chown(folder, Some(user.uid), Some(user.gid)),
            Identity::Own | Identity::Namespace(_) => Ok(()),
        }
    }

    /// The owner of what this identity writes, as seen from here.
    pub fn owner(&self) -> u32 {
        match self {
            Identity::Other(user) => user.uid,
            Identity::Own | Identity::Namespace(_) => own_uid(),
        }
    }

    /// Whether this identity can enter the data folder and run the programs. Permissions, access
    /// lists, mounts and security modules all have a say, so we try instead of working it out.
    async fn reaches(&self, data: &Path, bin: &Path) -> bool {
        let mut command = self.command(Path::new("/bin/sh"));
        command
            .args(["-c", r#"cd "$1" && "$2/postgres" --version && "$2/initdb" --version"#, "reach"])
            .args([data, bin]);
        output(&mut command).await.is_ok_and(|output| output.status.success())
    }
}

/// Chooses who runs PostgreSQL: whoever owns the cluster if there is one, else the first who can.
pub(super) async fn choose(
    data: &Path,
    cluster: &Path,
    bin: &Path,
) -> Result<Identity, EmbeddedError> {
    let uid = own_uid();
    let owner = fs::symlink_metadata(cluster).ok().map(|meta| (meta.uid(), meta.gid()));
    if uid != 0 {
        return match owner {
            Some((owner, _)) if owner != uid => Err(EmbeddedError::Owner {
                path: cluster.to_owned(),
                owner: name(owner),
                own: name(uid),
            }),
            _ => Ok(Identity::Own),
        };
    }
    let candidates = match owner {
        Some((0, _)) => namespaces(),
        Some((uid, gid)) => vec![Identity::Other(User { name: name(uid), uid, gid })],
        None => {
            let folder = fs::metadata(data.parent().unwrap_or(data)).ok();
            let around = folder.and_then(|meta| {
                users().into_iter().find(|user| user.uid == meta.uid() && user.uid != 0)
            });
            let others = unprivileged().into_iter().chain(around).map(Identity::Other);
            others.chain(namespaces()).collect()
        }
    };
    for candidate in candidates {
        if candidate.reaches(data, bin).await {
            return Ok(candidate);
        }
    }
    Err(match owner {
        Some((owner, _)) if owner != 0 => EmbeddedError::Unreachable {
            user: name(owner),
            data: data.to_owned(),
            bin: bin.to_owned(),
        },
        _ => EmbeddedError::Root { data: data.to_owned(), bin: bin.to_owned() },
    })
}

/// The user namespaces worth a try: initdb wants a name for its user, so the one inside needs one.
pub(super) fn namespaces() -> Vec<Identity> {
    unprivileged().into_iter().take(1).map(Identity::Namespace).collect()
}

/// Our effective user, read from the kernel because the standard library has no call for it.
pub(super) fn own_uid() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Without /proc there is no telling; "not root" is the answer that changes nothing.
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(u32::MAX)
}

/// Runs a short command to its end, bounded.
pub(super) async fn output(command: &mut Command) -> std::io::Result<std::process::Output> {
    let output = command.stdin(Stdio::null()).output();
    tokio::time::timeout(PROBE_TIMEOUT, output).await.map_err(std::io::Error::from)?
}

fn unprivileged() -> Vec<User> {
    let users = users();
    ["postgres", "nobody"]
        .into_iter()
        .filter_map(|name| users.iter().find(|user| user.name == name && user.uid != 0).cloned())
        .collect()
}

fn users() -> Vec<User> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name, uid, gid })
    };
    passwd.lines().filter_map(parse).collect()
}

fn name(uid: u32) -> String {
    let user = users().into_iter().find(|user| user.uid == uid);
    user.map_or_else(|| format!("uid {uid}"), |user| user.name)
}
