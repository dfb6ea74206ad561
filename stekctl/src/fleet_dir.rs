//! The directory of a fleet's files: an authority, and for each server what is copied to it.
//!
//! `init` makes it, the commands of a later day read it and change it. What is to be changed is for them
//! to say. Invariants: what is written was accepted by the plugin's own loader before anything of it
//! appears; a new directory appears whole or not at all, a change file by file only after all of its
//! files are written; a private key is never, not even for a moment, readable by others than its owner.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stek_share::core::config::{parse_list, printable, Member, Problem, MAX_MEMBERS};
use stek_share::core::server_id::ServerId;
use stek_share::core::server_list::ServerList;
use stek_share::load::{self, Dirs, Loaded};

use crate::exit_code::Failure;
use crate::journal::{self, make_dir, write, Step, REMOVED, SERVER_KEY};
use crate::pki::{self, Identity};

/// Where the files are meant to be on a server, relative to Traffic Server's configuration directory.
pub const HOME: &str = "stek_share";

/// The authority's folder, and its certificate and key in it.
const CA: &str = "ca";

/// What a server's folder is called before its number.
const SERVER: &str = "server-";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Folder and name of a file, below the directory.
pub type Name = (String, &'static str);

/// A server's folder below the directory.
pub fn folder(id: ServerId) -> String {
    format!("{SERVER}{id}")
}

/// The common name in a server's certificate.
pub fn common_name(id: ServerId) -> String {
    format!("stek-share-{id}")
}

/// A directory as it is.
pub struct FleetDir {
    path: PathBuf,
    /// The servers of the list, in its order.
    pub members: Vec<Member>,
    /// Numbers that servers have or had.
    pub used: BTreeSet<ServerId>,
}

impl FleetDir {
    /// Reads it, and holds its parts against each other.
    ///
    /// # Errors
    /// When it is none, or its parts do not belong together.
    pub fn read(path: &Path) -> Result<FleetDir, Failure> {
        let lists = server_folders(path)?;
        let Some(first) = lists.iter().next().map(|id| folder(*id)) else {
            return Err(Failure::new(format!(
                "{}: has no folder {SERVER}1 or of another server; give the directory that 'stekctl init' \
                 made",
                path.display()
            )));
        };
        let members = read_list(path, &first)?;
        for id in &lists {
            let other = folder(*id);
            if read_list(path, &other)? != members {
                return Err(Failure::new(format!(
                    "{}: differs from that of {first}; make server_list.yaml the same in all",
                    path.join(other).join("server_list.yaml").display()
                )));
            }
        }
        let listed: BTreeSet<ServerId> = members.iter().map(|member| member.id).collect();
        if let Some(id) = listed.symmetric_difference(&lists).next() {
            let what = if listed.contains(id) {
                "is in the server list and has no folder"
            } else {
                "has a folder and is not in the server list"
            };
            return Err(Failure::new(format!(
                "{}: server_id {id} {what}; put back what was changed by hand",
                path.display()
            )));
        }
        let mut used = listed;
        used.extend(removed(path));
        Ok(FleetDir { path: path.to_owned(), members, used })
    }

    /// Signs new certificates. It may be kept elsewhere as long as none is made.
    ///
    /// # Errors
    /// When it is not there, or damaged.
    pub fn authority(&self) -> Result<Identity, Failure> {
        self.identity("ca")
    }

    /// The authority to come, while one is being replaced.
    ///
    /// # Errors
    /// When one is, and half of it is not there, or it is damaged.
    pub fn next_authority(&self) -> Result<Option<Identity>, Failure> {
        self.changes_authority().then(|| self.identity("next")).transpose()
    }

    /// Whether the authority is being replaced.
    pub fn changes_authority(&self) -> bool {
        ["next.crt", "next.key"].iter().any(|name| self.path.join(CA).join(name).exists())
    }

    fn identity(&self, name: &str) -> Result<Identity, Failure> {
        let [certificate, key] =
            ["crt", "key"].map(|end| self.path.join(CA).join(format!("{name}.{end}")));
        if let Some(gone) = [&key, &certificate].into_iter().find(|path| !path.exists()) {
            return Err(Failure::new(format!(
                "{}: is not there; put the authority's certificate and key back, as {name}.crt and \
                 {name}.key: new certificates need both",
                gone.display()
            )));
        }
        let read = Identity::from_pem(&read_file(&certificate)?, &read_file(&key)?);
        read.map_err(|why| {
            let words = format!("{}: {why}; put the file back that belongs there", key.display());
            Failure::new(printable(&words, usize::MAX))
        })
    }

    /// The directory's name, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A number that no server has or had.
    pub fn free_id(&self) -> ServerId {
        ServerId(self.used.last().map_or(1, |last| last.0 + 1))
    }

    /// A file's text.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(&self, id: ServerId, name: &str) -> Result<String, Failure> {
        let path = self.path.join(folder(id)).join(name);
        let bytes = read_file(&path)?;
        String::from_utf8(bytes)
            .map_err(|_| Failure::new(format!("{}: is not UTF-8 text", path.display())))
    }

    /// The plugin's configuration of a server of the list, by which servers can be asked.
    ///
    /// # Errors
    /// The plugin's lines about it.
    pub fn load(&self, id: ServerId) -> Result<Loaded, Failure> {
        load_server(&self.path, id)
    }

    /// Carries a change out, after the plugin's own loader has taken what comes of it. The command and what
    /// it has to say are kept until [`journal::clear`].
    ///
    /// # Errors
    /// Why nothing was changed, or not all; then the same command goes on with it.
    pub fn change(&self, change: &FleetChange, command: &str, answer: &str) -> Result<(), Failure> {
        let draft = Draft::at(journal::draft(&self.path))?;
        let kept: BTreeSet<ServerId> = self.members.iter().map(|member| member.id).collect();
        for id in kept.difference(&change.leaving) {
            copy_folder(&self.path, draft.path(), &folder(*id), &change.files)?;
        }
        for (folder, _) in change.files.keys() {
            if !draft.path().join(folder).exists() {
                make_dir(&draft.path().join(folder))?;
            }
        }
        for ((folder, name), content) in &change.files {
            write(&draft.path().join(folder), name, content)?;
        }
        let staying = kept.difference(&change.leaving).copied();
        prove(&draft, &self.path, staying.chain(change.coming.iter().copied()))?;
        journal::commit(draft.path(), &self.path, &change.steps(), command, answer)?;
        draft.finished();
        Ok(())
    }
}

/// What a command makes of a directory.
#[derive(Default)]
pub struct FleetChange {
    /// Files with a new content.
    pub files: BTreeMap<Name, Vec<u8>>,
    /// New servers, all of whose files are among those.
    pub coming: BTreeSet<ServerId>,
    /// Servers that leave.
    pub leaving: BTreeSet<ServerId>,
    /// Files that go.
    pub dropped: Vec<Name>,
}

impl FleetChange {
    /// Adds an authority's or a server's certificate and key.
    ///
    /// # Errors
    /// OpenSSL failed.
    pub fn identity(
        &mut self,
        folder: &str,
        names: [&'static str; 2],
        identity: &Identity,
    ) -> Result<(), Failure> {
        let [certificate, key] = names;
        let broken = |error| Failure::new(format!("OpenSSL cannot write PEM: {error}"));
        let pems = [identity.certificate_pem(), identity.key_pem()];
        for (name, pem) in [certificate, key].into_iter().zip(pems) {
            self.files.insert((folder.to_owned(), name), pem.map_err(broken)?);
        }
        Ok(())
    }

    /// In the order in which nothing is missed by who looks in between.
    fn steps(&self) -> Vec<Step> {
        let is_new = |name: &str| self.coming.iter().any(|id| folder(*id) == name);
        let coming = self.coming.iter().map(|id| Step::Come(folder(*id)));
        // The files of a new folder come with it.
        let files = self.files.keys().filter(|(folder, _)| !is_new(folder));
        let files = files.map(|(folder, name)| Step::File(folder.clone(), (*name).to_owned()));
        let leaving = self.leaving.iter().map(|id| Step::Leave(folder(*id)));
        let dropped = self.dropped.iter();
        let dropped = dropped.map(|(folder, name)| Step::Drop(folder.clone(), (*name).to_owned()));
        coming.chain(files).chain(leaving).chain(dropped).collect()
    }

    /// Adds a server's certificate and key.
    ///
    /// # Errors
    /// OpenSSL failed.
    pub fn leaf(&mut self, id: ServerId, identity: &Identity) -> Result<(), Failure> {
        self.identity(&folder(id), ["server.crt", SERVER_KEY], identity)
    }

    /// Adds a server's other file.
    pub fn file(&mut self, id: ServerId, name: &'static str, content: &[u8]) {
        self.files.insert((folder(id), name), content.to_owned());
    }
}

/// Makes a directory of these files, which must not exist, or be empty.
///
/// # Errors
/// Why nothing was written.
pub fn make(dir: &Path, change: &FleetChange) -> Result<(), Failure> {
    let draft = Draft::beside(dir)?;
    for ((folder, name), content) in &change.files {
        let home = draft.path().join(folder);
        if !home.exists() {
            make_dir(&home)?;
        }
        write(&home, name, content)?;
    }
    prove(&draft, dir, change.coming.iter().copied())?;
    draft.finish(dir)
}

/// The text of a server list.
pub fn list(members: &[Member]) -> String {
    let head = "# Every server of the fleet. The same file on each.\n\n";
    let entries = members.iter().map(|member| {
        let Member { id, address, port, subject, voter } = member;
        let subject = subject.as_deref().map_or(String::new(), |subject| {
            // Quoted only where it has to be: an apostrophe is doubled within apostrophes.
            let plain = |c: char| c.is_ascii_alphanumeric() || "/=-._".contains(c);
            let subject = if subject.chars().all(plain) {
                subject.to_owned()
            } else {
                format!("'{}'", subject.replace('\'', "''"))
            };
            format!("  cert_verify_str: {subject}\n")
        });
        let voter = if *voter { "" } else { "  voter: false\n" };
        format!("- server_id: {id}\n  address: \"{address}\"\n  port: {port}\n{subject}{voter}")
    });
    std::iter::once(head.to_owned()).chain(entries).collect()
}

/// A member as it stands in a list: its address in the form that is kept.
///
/// # Errors
/// Why no list can have it, in words that follow a name.
pub fn member(id: ServerId, address: &str, port: u16) -> Result<Member, String> {
    // The characters that could end the quotes around it are in no address.
    if address.contains(['"', '\\', '\n']) {
        return Err("is not an address".to_owned());
    }
    let subject = Some(pki::subject(&common_name(id)));
    let wanted = Member { id, address: address.to_owned(), port, subject, voter: true };
    let (read, problems) = parse_list(&list(std::slice::from_ref(&wanted)), "");
    if let Some(problem) = problems.into_iter().find(Problem::is_error) {
        return Err(problem.reason);
    }
    read.and_then(|list| list.members.into_iter().next())
        .ok_or_else(|| "is not an address".to_owned())
}

/// The ids of the servers that have a folder.
fn server_folders(path: &Path) -> Result<BTreeSet<ServerId>, Failure> {
    let entries = fs::read_dir(path).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "is not there".to_owned(),
            io::ErrorKind::NotADirectory => "is no directory".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(format!(
            "{}: {why}; give the directory that 'stekctl init' made",
            path.display()
        ))
    })?;
    let ids: BTreeSet<ServerId> = entries.flatten().filter_map(|entry| id_of(&entry)).collect();
    if ids.len() > MAX_MEMBERS {
        let (found, shown) = (ids.len(), path.display());
        return Err(Failure::new(format!(
            "{shown}: holds {found} servers, more than {MAX_MEMBERS}; make several fleets of them"
        )));
    }
    Ok(ids)
}

fn removed(path: &Path) -> BTreeSet<ServerId> {
    let entries = fs::read_dir(path.join(REMOVED)).into_iter().flatten().flatten();
    entries.filter_map(|entry| id_of(&entry)).collect()
}

fn id_of(entry: &fs::DirEntry) -> Option<ServerId> {
    entry.file_name().to_str()?.strip_prefix(SERVER)?.parse().ok().map(ServerId)
}

fn read_list(path: &Path, folder: &str) -> Result<Vec<Member>, Failure> {
    let file = path.join(folder).join("server_list.yaml");
    let text = String::from_utf8_lossy(&read_file(&file)?).into_owned();
    let (read, problems) = parse_list(&text, &file.to_string_lossy());
    let lines: Vec<String> =
        problems.iter().filter(|p| p.is_error()).map(Problem::to_string).collect();
    match read {
        Some(list) if lines.is_empty() => Ok(list.members),
        _ => Err(Failure(lines)),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let metadata = fs::metadata(path);
    if metadata.as_ref().is_ok_and(|metadata| metadata.len() > MAX_FILE) {
        return Err(Failure::new(format!("{}: is larger than {MAX_FILE} bytes", path.display())));
    }
    metadata.and_then(|_| fs::read(path)).map_err(|error| {
        Failure::new(format!("{}: cannot be read: {error}; put it back", path.display()))
    })
}

/// Copies the files of a folder but those that change.
fn copy_folder(
    from: &Path,
    to: &Path,
    folder: &str,
    but: &BTreeMap<Name, Vec<u8>>,
) -> Result<(), Failure> {
    let (from, to) = (from.join(folder), to.join(folder));
    make_dir(&to)?;
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", from.display()));
    for entry in fs::read_dir(&from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let changes = but.keys().any(|(place, file)| place == folder && name == *file);
        if !changes && entry.path().is_file() {
            fs::copy(entry.path(), to.join(&name)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Has the plugin's loader read what was written, and speak of it as if it was in its place.
fn prove(
    draft: &Draft,
    dir: &Path,
    mut servers: impl Iterator<Item = ServerId>,
) -> Result<(), Failure> {
    let [hidden, shown] = [draft.path(), dir].map(|path| path.to_string_lossy().into_owned());
    let taken = servers.try_for_each(|id| load_server(draft.path(), id).map(drop));
    taken.map_err(|Failure(lines)| {
        Failure(lines.iter().map(|line| line.replace(&hidden, &shown)).collect())
    })
}

fn load_server(dir: &Path, id: ServerId) -> Result<Loaded, Failure> {
    // The loader looks for relative names beside other files than this process would.
    let dir = std::path::absolute(dir)
        .map_err(|error| Failure::new(format!("{}: {error}", dir.display())))?;
    let home = dir.join(folder(id));
    let dirs = Dirs { working: home.clone(), install: home.clone(), config: home.clone() };
    let conf = home.join("server_conf.yaml");
    // A certificate for less than 30 days is worth a warning, and was asked for.
    load::load(&conf.to_string_lossy(), &dirs)
        .map_err(|refused| Failure(refused.problems.iter().map(Problem::to_string).collect()))
}

/// The list that these members make, which must be one that a group can agree on.
///
/// # Errors
/// Why it is none.
pub fn agreeable(members: &[Member]) -> Result<ServerList, Failure> {
    ServerList::new(0, members)
        .map_err(|why| Failure::new(format!("the new server list: {why}; nothing was changed")))
}

/// A directory that takes another place when all is written, and goes away otherwise.
struct Draft {
    path: PathBuf,
    finished: bool,
}

impl Draft {
    /// Beside the wanted one.
    fn beside(dir: &Path) -> Result<Draft, Failure> {
        // Also where it is given as `.` it has a name.
        let dir = fs::canonicalize(dir).or_else(|_| std::path::absolute(dir));
        let dir = dir.map_err(|error| Failure::new(error.to_string()))?;
        let name = dir
            .file_name()
            .ok_or_else(|| Failure::new(format!("{}: is no name of a directory", dir.display())))?;
        let hidden = format!(".{}", name.to_string_lossy());
        if let Some(above) = dir.parent() {
            journal::clear_drafts(above, &hidden)?;
        }
        Draft::at(dir.with_file_name(format!("{hidden}.{}", std::process::id())))
    }

    fn at(path: PathBuf) -> Result<Draft, Failure> {
        make_dir(&path)?;
        Ok(Draft { path, finished: false })
    }

    /// It is in another place now.
    fn finished(mut self) {
        self.finished = true;
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// Renaming replaces an empty directory and nothing else.
    fn finish(self, dir: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, dir).map_err(|error| {
            Failure::new(format!("{}: cannot be made: {error}; nothing was written", dir.display()))
        })?;
        self.finished();
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody is left who could be told.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
