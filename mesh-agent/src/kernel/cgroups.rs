//! Which cgroup the agent attaches to, and which is its own. In: the settings, /proc, the cgroup v2 file system. Out: two
//! directories, or an error that says what to do. Works from inside a cgroup namespace as well, as containers have one.
//! Changes nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::KernelError;

/// The cgroup that the agent attaches to, and its own.
pub struct Cgroups {
    /// Where the programs go.
    pub attach: PathBuf,
    /// The agent's own.
    pub own: PathBuf,
    /// Where the hierarchy is mounted.
    mount: PathBuf,
}

impl Cgroups {
    /// The cgroup that was asked for, or the root of the cgroup v2 hierarchy wherever it is mounted. Fails unless this
    /// process is inside it, with others.
    pub fn find(asked: Option<&Path>) -> Result<Cgroups, KernelError> {
        let (attach, own) = Cgroups::look(asked)?;
        // Without this the agent's accepted sockets would not come by sock_ops.
        let Some(own) = own.filter(|own| own.starts_with(&attach)) else {
            return Err(KernelError::Environment {
                missing: format!("the agent does not run inside the cgroup {} that it is to catch", attach.display()),
                remedy: format!("start it in a cgroup below {}, or leave kernel.cgroup out", attach.display()),
            });
        };
        // Only the root of all has no events of its own.
        if own == attach && attach.join("cgroup.events").exists() {
            return Err(KernelError::Environment {
                missing: format!("cgroup {} is the agent's own: it would catch nobody but itself", attach.display()),
                remedy:
                    "leave kernel.cgroup out, or set it to one above; in a container, mount the host's /sys/fs/cgroup"
                        .into(),
            });
        }
        let mount = Mount::of(asked)?.at;
        Ok(Cgroups { attach, own, mount })
    }

    /// As [`Cgroups::find`], for somebody who only looks: this process may be anywhere, or nowhere.
    pub fn look(asked: Option<&Path>) -> Result<(PathBuf, Option<PathBuf>), KernelError> {
        let mount = Mount::of(asked)?;
        let attach = asked.unwrap_or(&mount.at);
        let attach = attach.canonicalize().map_err(|e| KernelError::Environment {
            missing: format!("cgroup {}: {e}", attach.display()),
            remedy: "create it, or set kernel.cgroup to a directory of the cgroup v2 hierarchy".into(),
        })?;
        if !attach.starts_with(&mount.at) {
            return Err(KernelError::Environment {
                missing: format!("{} is not a cgroup v2 directory", attach.display()),
                remedy: format!("set kernel.cgroup to a directory below {}", mount.at.display()),
            });
        }
        Ok((attach, mount.own()))
    }

    /// The root of the whole hierarchy, if the mount shows all of it.
    pub fn root(&self) -> Option<&Path> {
        fs::metadata(&self.mount).is_ok_and(|root| root.ino() == ROOT).then_some(&*self.mount)
    }

    /// The id of the agent's own cgroup, if no other process is in it now: then none of its processes is ever caught.
    pub fn agent(&self) -> Option<u64> {
        id_if_alone(&self.own)
    }
}

/// Id of the hierarchy's root (kernfs counts from 1).
const ROOT: u64 = 1;

/// A mount of the cgroup v2 hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// Which cgroup it shows, as seen from this process's cgroup namespace: `/..` is one above the namespace's root.
    root: PathBuf,
    /// Where.
    at: PathBuf,
}

impl Mount {
    /// The one that shows what was asked for, else the first.
    fn of(asked: Option<&Path>) -> Result<Mount, KernelError> {
        let all = mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
        let shows = |mount: &Mount| asked.is_some_and(|asked| asked.starts_with(&mount.at));
        let at = all.iter().position(shows).unwrap_or_default();
        all.into_iter().nth(at).ok_or_else(|| KernelError::Environment {
            missing: "no cgroup v2 hierarchy".into(),
            remedy: "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified".into(),
        })
    }

    /// This process's own cgroup.
    fn own(&self) -> Option<PathBuf> {
        self.own_of(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), |directory| {
            pids(directory).contains(&std::process::id())
        })
    }

    /// The directory of the cgroup v2 line (`0::/path`) of /proc/self/cgroup. The path says nothing about what is above
    /// the namespace's root, so there the cgroup is looked for, as many levels below the mount as the root is.
    fn own_of(&self, cgroup: &str, is: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let path = Path::new(cgroup.lines().find_map(|line| line.strip_prefix("0::"))?);
        let up = self.root.components().filter(|part| *part == Component::ParentDir).count();
        if up == 0 {
            return Some(self.at.join(path.strip_prefix(&self.root).ok()?));
        }
        let inside = path.strip_prefix("/").ok()?;
        below(&self.at, up, &|directory| is(&directory.join(inside))).map(|root| root.join(inside))
    }
}

/// The first directory so many levels below another that is the right one.
fn below(directory: &Path, levels: usize, right: &impl Fn(&Path) -> bool) -> Option<PathBuf> {
    if levels == 0 {
        return right(directory).then(|| directory.to_owned());
    }
    let entries = fs::read_dir(directory).ok()?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    entries.map(|e| e.path()).find_map(|path| below(&path, levels - 1, right))
}

/// The cgroup v2 mounts. Format: proc_pid_mountinfo(5).
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let read = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (after.split(' ').next()? == "cgroup2").then(|| Mount { root: unescape(root), at: unescape(at) })
    };
    mountinfo.lines().filter_map(read).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\").into()
}

/// The processes of a cgroup, as they are numbered here.
fn pids(cgroup: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// The cgroup's id, if this process is the only one in it. A process that shares the agent's cgroup, say because both
/// were started from one shell, must not escape the mesh by that.
fn id_if_alone(cgroup: &Path) -> Option<u64> {
    let alone = pids(cgroup) == [std::process::id()];
    if alone { fs::metadata(cgroup).ok().map(|m| m.ino()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(root: &str, at: &str) -> Mount {
        Mount { root: root.into(), at: at.into() }
    }

    #[test]
    fn finds_the_mounts_wherever_they_are() {
        let text = "24 1 0:5 / /sys rw shared:2 - sysfs sysfs rw\n\
                    30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    31 24 0:27 /pods/x /sys/fs/cgroup/my\\040unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
                    32 24 0:27 /../.. /host rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mounts(text), [mount("/pods/x", "/sys/fs/cgroup/my unified"), mount("/../..", "/host")]);
        assert_eq!(mounts("31 24 0:27 / /x rw - cgroup cgroup rw\nrubbish\n"), []);
    }

    #[test]
    fn own_cgroup_is_seen_from_the_mount() {
        let text = "3:cpu:/a\n0::/pods/x/agent\n";
        let own = |root, at, text| mount(root, at).own_of(text, |_| false);
        assert_eq!(own("/", "/m", text), Some("/m/pods/x/agent".into()));
        assert_eq!(own("/pods/x", "/m", text), Some("/m/agent".into()));
        assert_eq!(own("/other", "/m", text), None);
        assert_eq!(own("/", "/m", "3:cpu:/a\n"), None);
    }

    #[test]
    fn own_cgroup_is_found_above_the_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path();
        for pod in ["a/x", "a/y/in", "b/z/in"] {
            fs::create_dir_all(host.join(pod)).unwrap();
        }
        let mount = Mount { root: "/../..".into(), at: host.into() };
        let is = |wanted: &'static str| move |path: &Path| path == host.join(wanted);
        assert_eq!(mount.own_of("0::/\n", is("a/x")), Some(host.join("a/x")));
        assert_eq!(mount.own_of("0::/in\n", is("b/z/in")), Some(host.join("b/z/in")));
        assert_eq!(mount.own_of("0::/\n", is("a")), None, "another level");
    }
}
