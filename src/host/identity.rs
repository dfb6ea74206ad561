//! Work as another user, for who checks what that user may read and write: the kernel's own answer, with all
//! its lists and modules, not a guess by modes.
//!
//! Only for a thread of its own, which ends with the work; the rest of the process keeps its rights.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

/// A user as the kernel sees one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name, or the number as text.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The main group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// Whether this process is root, who alone may work as others.
pub fn is_root() -> bool {
    asking() == 0
}

/// The user that this process works as.
pub fn asking() -> u32 {
    // SAFETY: takes and returns plain numbers, and cannot fail.
    unsafe { libc::geteuid() }
}

/// Does the work with this user's rights and no others.
///
/// # Errors
/// The kernel does not let this process be that user, or has no thread.
pub fn as_user<T: Send>(user: &User, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let job = move || {
            become_user(user)?;
            Ok(work())
        };
        let thread = thread::Builder::new().spawn_scoped(scope, job)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Changes the rights of this thread. The bare system calls do so; the library's functions would change those
/// of all threads.
fn become_user(user: &User) -> io::Result<()> {
    let done = |result: libc::c_long| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let User { uid, gid, groups, .. } = user;
    // SAFETY: the list is alive during the call and as long as is said.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: takes plain numbers.
    done(unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) })?;
    // SAFETY: takes plain numbers.
    done(unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) })
}

/// Whether this thread may make and remove files in a directory.
///
/// # Errors
/// Why not.
pub fn may_write_in(dir: &Path) -> io::Result<()> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: a string that ends in a NUL and is alive during the call.
    match unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};

    #[test]
    fn another_users_rights_count_in_one_thread_only() -> io::Result<()> {
        if !is_root() {
            return Ok(());
        }
        let dir = std::env::temp_dir().join(format!("stek-identity-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let (file, group) = (dir.join("secret"), 4_711);
        fs::write(&file, "x")?;
        chown(&file, Some(0), Some(group))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let user = |groups| User { name: "nobody".to_owned(), uid: 65_534, gid: 65_534, groups };
        let read = || (fs::read(&file).is_ok(), may_write_in(&dir).is_ok());
        assert_eq!(as_user(&user(Vec::new()), read)?, (false, false));
        assert_eq!(as_user(&user(vec![group]), read)?, (true, false));
        let owner = as_user(&user(Vec::new()), || fs::metadata("/proc/thread-self"))??;
        assert_eq!((owner.uid(), owner.gid()), (65_534, 65_534));
        assert_eq!(read(), (true, true));
        fs::remove_dir_all(&dir)
    }
}
