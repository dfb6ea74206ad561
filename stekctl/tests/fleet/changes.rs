//! `add`, `remove`, `replace` and `renew` on fleets whose clients take and offer tickets all the while:
//! what the commands print is what is done here, and no ticket is missed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use testkit::ats::Ats;
use testkit::fleet::wait_one_key;
use testkit::load::{self, Load, Report};
use testkit::pki::Identity;
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, TlsVersion};
use testkit::{ports, wait, Context, Error, Result};

use crate::stage::{install, rewrite, stekctl, text, turn, wait_code, Said, PATIENCE};

/// The files of a fleet, the servers that it has and will have, and clients of them.
struct Site {
    dir: RunDir,
    /// What `init` made.
    files: PathBuf,
    /// By server id. Those that are not in the list yet are not started.
    servers: BTreeMap<usize, Ats>,
    ports: Vec<u16>,
    load: Load,
    /// When the last job was done, and what clients had met until then.
    mark: (Instant, Report),
}

impl Site {
    /// `size` servers of `all`, with a key that changes every two seconds.
    fn new(size: usize, all: usize) -> Result<Site> {
        let dir = RunDir::new("ctl-changes")?;
        let files = dir.join("fleet");
        let ports = ports::take_many(all)?;
        let places: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let first: Vec<&str> = places.iter().take(size).map(String::as_str).collect();
        let words = [&["init", text(&files), "--interval", "2"], &first[..]].concat();
        stekctl(&words)?.ended(0, "Made ")?;
        let site = Identity::self_signed("/CN=localhost")?.write(dir.path(), "site")?;
        let mut servers = BTreeMap::new();
        for id in 1..=all {
            let ats = Ats::builder(&dir.join(&format!("server-{id}"))).certificate(&site);
            let ats = ats.record("proxy.config.core_limit INT 0").manager().build()?;
            if id <= size {
                install(&files.join(format!("server-{id}")), &ats)?;
            }
            servers.insert(id, ats);
        }
        servers.values_mut().take(size).try_for_each(Ats::start)?;
        servers.values_mut().take(size).try_for_each(Ats::wait_ready)?;
        let https: Vec<_> = servers.values().map(Ats::https).collect();
        wait_one_key(&https[..size], None, PATIENCE)?;
        let load = Load::start(&https, load::Plan::default())?;
        (size..all).for_each(|index| load.set_up(index, false));
        let mark = (Instant::now(), load.report());
        Ok(Site { dir, files, servers, ports, load, mark })
    }

    fn server(&self, id: usize) -> Result<&Ats> {
        self.servers.get(&id).ok_or_else(|| Error::new(format!("no server {id}")))
    }

    fn place(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.ports[id - 1])
    }

    /// The command on the directory.
    fn change(&self, words: &[&str]) -> Result<Said> {
        let (command, rest) = words.split_first().ok_or_else(|| Error::new("no words"))?;
        stekctl(&[&[*command, text(&self.files)], rest].concat())
    }

    /// Copies files of some servers to them, in this order.
    fn hand_out(&self, ids: &[usize], names: &[&str]) -> Result<()> {
        for id in ids {
            let (from, to) = (self.home(*id), self.server(*id)?.etc().join("stek_share"));
            for name in names {
                // Over the file that is there, as scp does.
                fs::write(to.join(name), fs::read(from.join(name))?).context(name)?;
            }
        }
        Ok(())
    }

    fn home(&self, id: usize) -> PathBuf {
        self.files.join(format!("server-{id}"))
    }

    fn status(&self, by: usize) -> Result<Said> {
        self.on(by, &["status"])
    }

    fn on(&self, id: usize, words: &[&str]) -> Result<Said> {
        let etc = self.server(id)?.etc();
        stekctl(&[&["--ats-config", text(&etc), "--timeout", "10"], words].concat())
    }

    /// A server that the group's list does not have says that, and blames no certificate.
    fn is_outside(&self, id: usize, words: &str) -> Result<()> {
        let look = || Ok(Some(self.status(id)?).filter(|said| said.out.contains(words)));
        let said = wait::until(PATIENCE, words, look)
            .map_err(|error| Error::new(format!("{error}: {:#?}", self.status(id))))?;
        let reasons: Vec<&str> = said.out.lines().filter(|line| line.contains(": ")).collect();
        // The first line is the result.
        let is_told = said.out.contains("the group's list");
        let one = reasons.len() == 2 && is_told && !said.out.contains("certificate");
        let log = self.server(id)?.diags();
        let blames = log.lines().find(|line| line.ends_with("handshake failure"));
        if said.code == 2 && one && blames.is_none() {
            Ok(())
        } else {
            Err(Error::new(format!("{said:#?}\n{blames:?}")))
        }
    }

    /// Has a server read its files, by the command that the steps name.
    fn reload(&self, id: usize, answer: &str) -> Result<()> {
        self.on(id, &["reload"])?.ended(0, answer)
    }

    /// Has these servers read their files, by the one command that the steps name.
    fn reload_all(&self, by: usize, ids: &[usize], answer: &str) -> Result<()> {
        let said = self.on(by, &["reload", "--all"])?;
        said.ended(0, answer)?;
        for id in ids {
            said.line(&[&format!("done: server {id} (")])?;
        }
        Ok(())
    }

    /// Starts a new server with its files, as the first steps of `add` and `replace` say.
    fn arrive(&mut self, id: usize) -> Result<()> {
        let home = self.home(id);
        let ats = self.servers.get_mut(&id).ok_or_else(|| Error::new("no such server"))?;
        install(&home, ats)?;
        ats.start()?;
        ats.wait_ready()
    }

    /// The last steps: the list for those that were there, one reload, and a fleet that is well.
    fn agree(&self, present: &[usize], all: &[usize]) -> Result<()> {
        self.hand_out(present, &["server_list.yaml"])?;
        self.reload(present[0], "the group's server list, version")?;
        let said = wait_code(0, || self.status(present[0]))?;
        said.ended(0, &format!("healthy: {0} of {0} servers answer", all.len()))
    }

    /// Lets clients at a new server, once it has the group's keys and has seen one being replaced.
    fn open(&self, id: usize, others: &[usize]) -> Result<()> {
        let mut https = vec![self.server(id)?.https()];
        for other in others {
            https.push(self.server(*other)?.https());
        }
        let first = wait_one_key(&https, None, PATIENCE)?;
        wait_one_key(&https, Some(&first), PATIENCE)?;
        self.load.set_up(id - 1, true);
        Ok(())
    }

    /// Takes clients off a server.
    fn close(&self, id: usize) {
        self.load.set_up(id - 1, false);
    }

    fn kill(&mut self, id: usize) {
        self.servers.get_mut(&id).into_iter().for_each(Ats::kill9);
    }

    /// Restarts a server as an upgrade does: out of the balancer, and back when it has the group's key.
    fn restart(&mut self, id: usize) -> Result<()> {
        self.restart_with(id, |site| site.on(id, &["wait"])?.ended(0, "ready: server "))
    }

    fn restart_with(&mut self, id: usize, wait: impl Fn(&Site) -> Result<()>) -> Result<()> {
        self.close(id);
        let ats = self.servers.get_mut(&id).ok_or_else(|| Error::new("no such server"))?;
        ats.stop(Signal::Interrupt)?;
        ats.start()?;
        wait(self)?;
        self.servers.get_mut(&id).map_or(Ok(()), Ats::wait_ready)?;
        self.load.set_up(id - 1, true);
        Ok(())
    }

    /// Prints what a job cost, from the job before it on; the table of docs/testing.md is made of these. The
    /// offers that were missed.
    fn did(&mut self, job: &str) -> u64 {
        let (begun, before) =
            std::mem::replace(&mut self.mark, (Instant::now(), self.load.report()));
        let now = &self.mark.1;
        println!(
            "{job}: {:.1} s, {} of {} offers missed",
            begun.elapsed().as_secs_f64(),
            now.missed - before.missed,
            now.offers - before.offers
        );
        now.missed - before.missed
    }

    fn end(self, least: u64) -> Result<()> {
        self.end_but_for(0, least)
    }

    /// With as many misses as a job made on purpose.
    fn end_but_for(self, meant: u64, least: u64) -> Result<()> {
        // A job may be done sooner than a busy machine makes its offers.
        let enough = || Ok((self.load.report().offers > least).then_some(()));
        wait::until(PATIENCE, "offers", enough)?;
        let report = self.load.stop();
        println!("{report}");
        assert_eq!(report.missed, meant, "{report}");
        assert!(report.offers > least, "too little load: {report}");
        self.dir.done()
    }
}

/// Everything in a directory, to tell whether anything changed.
fn content(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(content(&path)?);
        } else {
            all.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(all)
}

#[test]
fn three_servers_grow_are_replaced_renewed_and_shrink_without_a_miss() -> Result<()> {
    let _turn = turn();
    let mut site = Site::new(3, 5)?;

    let said = site.change(&["add", &site.place(4)])?;
    said.ended(0, "server 4 (127.0.0.1:")?;
    said.ended(0, "fleet/server-4/* root@127.0.0.1:/etc/trafficserver/stek_share/\n")?;
    said.ended(0, "     stekctl reload\n")?;
    site.arrive(4)?;
    site.is_outside(4, "broken: server 4 is not in the group's list, and encrypts")?;
    site.agree(&[1, 2, 3], &[1, 2, 3, 4])?;
    site.open(4, &[1, 2, 3])?;
    site.did("add a server to three");

    // A machine that is gone, and one in its place: clients went with it.
    site.close(2);
    site.kill(2);
    let said = site.change(&["replace", "2", &site.place(5)])?;
    said.ended(0, "server 5 (127.0.0.1:")?;
    site.arrive(5)?;
    site.agree(&[1, 3, 4], &[1, 3, 4, 5])?;
    site.open(5, &[1, 3, 4])?;
    site.did("replace a dead server of four");

    let before = fs::read(site.home(3).join("server.key"))?;
    let said = site.change(&["renew"])?;
    said.ended(0, "a new certificate and key for server 1")?;
    said.ended(0, "     stekctl reload --all\n")?;
    assert_ne!(before, fs::read(site.home(3).join("server.key"))?);
    site.hand_out(&[1, 3, 4, 5], &["server.crt", "server.key"])?;
    site.reload_all(3, &[1, 3, 4, 5], "changed: ")?;
    wait_code(0, || site.status(4))?;
    site.did("renew all certificates of four");

    for id in [1, 3, 4, 5] {
        site.restart(id)?;
    }
    wait_code(0, || site.status(4))?;
    site.did("restart four, one after another");

    site.close(4);
    let said = site.change(&["remove", "4"])?;
    said.ended(0, "server 4 (127.0.0.1:")?;
    assert!(!site.files.join("removed/server-4/server.key").exists());
    site.agree(&[1, 3, 5], &[1, 3, 5])?;
    site.did("remove a server of four");
    // Whether it knows that it was removed, or only that nobody knows it: a leader that goes starts anew.
    site.is_outside(4, "broken: server 4 ")?;
    wait_code(2, || site.on(4, &["status", "--self"]))?.ended(2, "not ready: server 4: it ")?;
    let said = site.on(4, &["rotate"])?;
    said.ended(3, "error: server 4 ")?;
    assert_eq!(said.err.lines().count(), 2, "{said:#?}");
    // Which it does not remember when it starts again.
    site.kill(4);
    site.servers.get_mut(&4).map_or(Ok(()), Ats::start)?;
    site.is_outside(4, "broken: server 4 is not in the group's list, and encrypts")?;
    let said = site.on(4, &["rotate"])?;
    said.ended(3, "error: server 4 is not in the group's list")?;
    assert_eq!(said.err.lines().count(), 2, "{said:#?}");
    site.kill(4);

    site.mark = (Instant::now(), site.load.report());
    // Of three, two are a majority and one of two is none.
    site.close(5);
    site.kill(5);
    let before = content(&site.files)?;
    site.change(&["remove", "3"])?.ended(3, "bring back or remove server 5 first")?;
    assert_eq!(before, content(&site.files)?, "a refused command changes nothing");
    let said = site.change(&["remove", "5", "--json"])?;
    said.ended(0, "\"removed\":[5]")?;
    site.hand_out(&[1, 3], &["server_list.yaml"])?;
    site.reload(1, "the group's server list, version")?;
    wait_code(0, || site.status(3))?.ended(0, "2 of 2 servers answer")?;
    site.did("remove a dead server of three");
    site.end(100)
}

#[test]
fn five_servers_change_their_authority_and_shrink_without_a_miss() -> Result<()> {
    let _turn = turn();
    let mut site = Site::new(5, 6)?;
    let all = [1, 2, 3, 4, 5];
    let steps: [(&str, &[&str]); 3] = [
        ("step 1 of 3", &["ca.crt"]),
        ("step 2 of 3", &["server.crt", "server.key"]),
        ("step 3 of 3", &["ca.crt"]),
    ];
    for (words, files) in steps {
        site.change(&["renew", "--authority"])?.ended(0, words)?;
        site.hand_out(&all, files)?;
        if files.contains(&"ca.crt") {
            site.reload(1, "changed: ")?;
            // The others are behind, and which certificate that is about is said.
            let said = site.on(1, &["doctor", "--proc", "/nowhere"])?;
            let behind = words.replace("step 1 of 3", "it lacks /O=stek_share/CN=");
            let behind = behind.replace("step 3 of 3", "it also has /O=stek_share/CN=");
            let holds = "root_cert_file holds other certificates than that of server 1 (";
            said.line(&["warning: server 5 (", holds, &behind])?;
        }
        site.reload_all(1, &all, "changed: ")?;
        wait_code(0, || site.status(1))?;
    }
    site.did("a new authority for five, all three steps");
    // The next certificates are of the new authority, and the old one is worth nothing.
    let ca = fs::read_to_string(site.files.join("ca/ca.crt"))?;
    assert_eq!(fs::read_to_string(site.home(2).join("ca.crt"))?, ca);
    assert!(!site.files.join("ca/next.key").exists());

    // A living server's key was stolen: another machine takes its place.
    site.change(&["replace", "1", &site.place(6)])?.ended(0, "server 6 (127.0.0.1:")?;
    site.arrive(6)?;
    site.close(1);
    site.agree(&[2, 3, 4, 5], &[2, 3, 4, 5, 6])?;
    site.open(6, &[2, 3])?;
    site.did("replace a living server of five");
    let stolen = site.server(1)?.etc();
    let said = stekctl(&["--ats-config", text(&stolen), "rotate"])?;
    said.ended(3, "nothing was done")?;

    site.close(2);
    site.close(3);
    site.change(&["remove", "2", "3"])?.ended(0, "the list of now 3 servers")?;
    site.agree(&[4, 5, 6], &[4, 5, 6])?;
    site.did("remove two servers of five");
    [1, 2, 3].into_iter().for_each(|id| site.kill(id));
    let https: Vec<_> =
        [4, 5, 6].iter().map(|id| Ok(site.server(*id)?.https())).collect::<Result<_>>()?;
    let now = tickets::key_name(https[0])?;
    wait_one_key(&https, Some(&now), PATIENCE)?;
    site.end(100)
}

/// What is done without the fleet's directory.
#[test]
fn an_interval_a_drain_a_rolling_restart_a_revocation_and_an_uninstallation() -> Result<()> {
    let _turn = turn();
    let mut site = Site::new(3, 3)?;
    let all = [1, 2, 3];

    for id in all {
        let conf = site.server(id)?.etc().join("stek_share/server_conf.yaml");
        rewrite(&conf, |text| text.replace("key_update_interval: 2", "key_update_interval: 4"))?;
        if id == 1 {
            site.reload(1, "changed: key_update_interval")?;
            let said = wait_code(1, || site.status(3))?;
            said.ended(1, "not all servers have the same key_update_interval: server 1 has 4")?;
        }
    }
    site.reload_all(2, &[1, 3], "changed: key_update_interval")?;
    wait_code(0, || site.status(1))?;
    site.did("change the interval of three");

    // The leader, as the one whose stop could cost the most.
    let said = site.on(1, &["status", "--json"])?;
    let told: Value = serde_json::from_str(&said.out).map_err(|e| Error::new(e.to_string()))?;
    let leader = told["servers"][0]["leader"].as_u64().and_then(|id| usize::try_from(id).ok());
    let leader = leader.ok_or_else(|| Error::new(format!("no leader: {said:#?}")))?;
    site.restart(leader)?;
    wait_code(0, || site.status(1))?;
    site.did("drain the leader of three, and put it back");

    // As a loop of somebody's own has it, with something else to be said of the fleet.
    let conf = site.server(1)?.etc().join("stek_share/server_conf.yaml");
    rewrite(&conf, |text| text.replace("key_update_interval: 4", "key_update_interval: 3"))?;
    site.reload(1, "changed: key_update_interval")?;
    for id in all {
        site.restart_with(id, |site| {
            let command = env!("CARGO_BIN_EXE_stekctl");
            let etc = site.server(id)?.etc();
            let line = "until \"$0\" --ats-config \"$1\" wait --timeout 5; do sleep 1; done";
            let mut bash = Command::new("timeout");
            bash.args(["60", "bash", "-c", line, command, text(&etc)]);
            let output = bash.output().context("bash")?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let is_ready = said.lines().last().is_some_and(|line| line.starts_with("ready: "));
            assert!(output.status.success() && is_ready, "{said}");
            Ok(())
        })?;
        assert_eq!(site.status(1)?.code, 1, "there is something to be said all the while");
    }
    site.did("rolling restart of three, by a loop");
    rewrite(&conf, |text| text.replace("key_update_interval: 3", "key_update_interval: 4"))?;
    site.reload(1, "changed: key_update_interval")?;

    // Older tickets are worth nothing then, which is what was ordered: those under way are missed.
    let https = site.server(2)?.https();
    let ticket = tickets::take(https, TlsVersion::V12)?;
    assert!(tickets::offer(https, &ticket)?.resumed);
    site.mark = (Instant::now(), site.load.report());
    site.on(3, &["revoke", "--yes"])?.ended(0, "is in use; every older key is dropped")?;
    // What is still under way counts no more.
    for id in all {
        site.close(id);
        site.load.set_up(id - 1, true);
    }
    let places: Vec<_> = site.servers.values().map(Ats::https).collect();
    for place in &places {
        // A server has dropped the keys when revoke says so, and Traffic Server is given that at once.
        wait::until(PATIENCE, "a revoked ticket to be refused", || {
            Ok((!tickets::offer(*place, &ticket)?.resumed).then_some(()))
        })?;
    }
    wait_one_key(&places, None, PATIENCE)?;
    let meant = site.did("revoke, in three");
    wait_code(0, || site.status(1))?.ended(0, "healthy: 3 of 3 servers answer")?;

    site.mark = (Instant::now(), site.load.report());
    site.close(3);
    let ca = site.files.join("ca");
    fs::rename(&ca, site.dir.join("elsewhere"))?;
    site.change(&["add", "127.0.0.1:1"])?.ended(3, "ca.key: is not there; put the authority's")?;
    site.change(&["remove", "3"])?.ended(0, "the list of now 2 servers")?;
    fs::rename(site.dir.join("elsewhere"), &ca)?;
    site.agree(&[1, 2], &[1, 2])?;
    let etc = site.server(3)?.etc();
    rewrite(&etc.join("plugin.config"), |_| String::new())?;
    let ats = site.servers.get_mut(&3).ok_or_else(|| Error::new("no server 3"))?;
    ats.stop(Signal::Interrupt)?;
    ats.start()?;
    ats.wait_ready()?;
    let own = ats.https();
    let ticket = tickets::take(own, TlsVersion::V12)?;
    assert!(tickets::offer(own, &ticket)?.resumed, "with a key of Traffic Server's own");
    assert!(!tickets::offer(places[0], &ticket)?.resumed, "and of nobody else's");
    fs::remove_dir_all(etc.join("stek_share"))?;
    wait_code(0, || site.status(2))?.ended(0, "healthy: 2 of 2 servers answer")?;
    site.did("uninstall from one of three");
    site.end_but_for(meant, 100)
}

/// A majority is gone for good: those that are left go on with their keys, and who comes back all the same
/// joins them.
fn recovers(size: usize, survivors: &[usize]) -> Result<()> {
    let mut site = Site::new(size, size)?;
    let lost: Vec<usize> = (1..=size).filter(|id| !survivors.contains(id)).collect();
    let names = |ids: &[usize]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (named, one) = (names(survivors), survivors[0]);
    let order = ["recover", "--yes", "--survivors"];
    let recover = |site: &Site, ids: &str| site.on(one, &[&order[..], &[ids]].concat());
    recover(&site, &named)?.ended(3, "hears a leader with a majority: the group works")?;
    for id in &lost {
        site.close(*id);
        site.kill(*id);
    }
    wait_code(2, || site.status(one))?.ended(2, "no server belongs to a majority")?;
    site.on(one, &["recover", "--survivors", &named])?.ended(3, "give --yes")?;
    let more = format!("{named},{}", lost[0]);
    recover(&site, &more)?.ended(3, &format!("no answer of server {}; start", lost[0]))?;
    if let [_, other, ..] = survivors {
        let there = format!("there is an answer of server {other} too; name it");
        recover(&site, &names(&[one]))?.ended(3, &there)?;
    }
    let https: Vec<_> =
        survivors.iter().map(|id| Ok(site.server(*id)?.https())).collect::<Result<_>>()?;
    let before = wait_one_key(&https, None, PATIENCE)?;
    site.mark = (Instant::now(), site.load.report());
    recover(&site, &named)?
        .ended(0, &format!("done: servers {} go on", named.replace(',', ", ")))?;
    wait_one_key(&https, Some(&before), PATIENCE)?;
    site.did(&format!("recover {} of {size}", survivors.len()));

    for id in &lost {
        site.servers.get_mut(id).map_or(Ok(()), Ats::start)?;
    }
    for id in &lost {
        site.on(*id, &["wait"])?.ended(0, "ready: server ")?;
        site.servers.get_mut(id).map_or(Ok(()), Ats::wait_ready)?;
        site.load.set_up(id - 1, true);
    }
    let said = wait_code(0, || site.status(one))?;
    said.ended(0, &format!("healthy: {size} of {size} servers answer"))?;
    site.did(&format!("{} lost servers of {size} come back", lost.len()));
    let https: Vec<_> = site.servers.values().map(Ats::https).collect();
    let before = wait_one_key(&https, None, PATIENCE)?;
    wait_one_key(&https, Some(&before), PATIENCE)?;
    site.end(20)
}

#[test]
fn one_of_three_and_two_of_five_go_on_alone_without_a_miss() -> Result<()> {
    let _turn = turn();
    recovers(3, &[2])?;
    recovers(5, &[1, 4])
}
