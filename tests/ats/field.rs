//! What the field throws at servers that run: places for a state file that are of no use, peers that cannot
//! be reached, files that change while nobody looks. Needs root, for mounts, other users and networks of
//! its own; does nothing without.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use testkit::fleet::{self, Place, Plan};
use testkit::nameserver::is_root;
use testkit::pki::Request;
use testkit::run_dir::RunDir;
use testkit::{ports, wait, Error, Result};

use crate::stage::{lines_of, plugin, reserve, Site, PATIENCE, PEER_SUBJECT};

/// A place for a state file, and what the one server with it says.
struct Home {
    /// Words of a shell that run before the server: `$D` is the directory, `$F` the file.
    before: &'static str,
    /// What each warning has in it.
    lines: &'static [&'static str],
}

/// A read-only tmpfs at `$D`, with what is made in it before.
macro_rules! read_only {
    ($make:literal) => {
        concat!(
            "mkdir \"$D\"; mount -t tmpfs -o mode=700 none \"$D\"; ",
            $make,
            " mount -o remount,ro \"$D\""
        )
    };
}

const HOMES: [Home; 9] = [
    Home { before: "true", lines: &[] },
    Home { before: read_only!(""), lines: &["cannot be written: Read-only file system"] },
    Home {
        before: read_only!("umask 77; echo old > \"$F\";"),
        lines: &[
            "is not used: it is cut short or no state file of this version",
            "cannot be written: Read-only file system",
        ],
    },
    Home {
        before: "mkdir \"$D\"; mount -t tmpfs -o mode=700,size=4k none \"$D\"; \
                 head -c 4096 /dev/zero > \"$D\"/full",
        lines: &["cannot be written: No space left on device"],
    },
    Home {
        before: "mkdir -p \"$F\"/more",
        lines: &["is not used: it is no regular file", "cannot be written: Is a directory"],
    },
    Home {
        // A pipe, at which a reader waits for ever; a new file takes its place.
        before: "mkdir \"$D\"; mkfifo \"$F\"",
        lines: &["is not used: it is no regular file"],
    },
    Home {
        before: "mkdir \"$D\"; ln -s /nowhere \"$F\"",
        lines: &["is not used: it cannot be read: Too many levels of symbolic links"],
    },
    Home {
        before: "mkdir \"$D\"; echo x > \"$F\"; chown 65534 \"$F\"; chmod 600 \"$F\"",
        lines: &["is not used: it is no regular file, or belongs to uid 65534 instead of 0"],
    },
    Home {
        before: "echo x > \"$D\"",
        lines: &["cannot be read: Not a directory", "cannot be written: Not a directory"],
    },
];

/// Whatever becomes of its state file, each server has the group's keys and their successors.
#[test]
fn no_place_for_a_state_file_keeps_a_server_from_its_group() -> Result<()> {
    if !is_root()? {
        println!("not tried: needs root");
        return Ok(());
    }
    let _reserved = reserve(HOMES.len());
    let dir = RunDir::new("state-homes")?;
    let memory = Path::new("/dev/shm").join(format!("stek-homes-{}", std::process::id()));
    fs::create_dir(&memory)?;
    let home = |index: usize| memory.join(index.to_string());
    let place = |(index, Home { before, .. }): (usize, &Home)| {
        let script = format!(
            "D='{}'; F=\"$D\"/server-{}.state; {before}; exec \"$@\"",
            home(index).display(),
            index + 1
        );
        let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        let wrapper = words.map(str::to_owned).to_vec();
        Place { address: IpAddr::V4(Ipv4Addr::LOCALHOST), wrapper }
    };
    let places: Vec<Place> = HOMES.iter().enumerate().map(place).collect();
    let plan = Plan::new(HOMES.len(), &plugin(), Duration::from_secs(4));
    let calm = plan
        .option("heart_beat_interval", "300")
        .option("election_timeout_lower_bound", "1500")
        .option("election_timeout_upper_bound", "3000");
    let mut fleet = calm.places(&places).prepare(dir.path())?;
    for (index, ats) in fleet.servers.iter().enumerate() {
        let conf = ats.etc().join("server_conf.yaml");
        let text = fs::read_to_string(&conf)?;
        fs::write(&conf, format!("{text}state_dir: {}\n", home(index).display()))?;
    }
    fleet.start()?;
    for ats in &fleet.servers {
        ats.wait_diags("(generation ", PATIENCE)?;
    }
    let first = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    fleet::wait_one_key(&fleet.https(), Some(&first), PATIENCE)?;
    for (Home { before, lines }, ats) in HOMES.iter().zip(&fleet.servers) {
        let about_it = || -> Vec<String> {
            let all = lines_of(ats, "WARNING").into_iter();
            all.filter(|line| line.starts_with("state file ")).collect()
        };
        let is_told = || {
            let told = about_it();
            Ok(lines.iter().all(|part| told.iter().any(|l| l.contains(part))).then_some(()))
        };
        wait::until(PATIENCE, before, is_told)
            .map_err(|error| Error::new(format!("{error}: {:#?}", about_it())))?;
        let unexpected: Vec<String> = about_it()
            .into_iter()
            .filter(|line| !lines.iter().any(|part| line.contains(part)))
            .collect();
        assert!(unexpected.is_empty(), "{before}: {unexpected:#?}");
        assert_eq!(lines_of(ats, "ERROR"), [""; 0], "{before}");
        assert!(!ats.diags().contains("restarting with empty state"), "{before}: {}", ats.diags());
    }
    drop(fleet);
    fs::remove_dir_all(&memory)?;
    dir.done()
}

/// A network with a way to nobody, in which each peer is out of reach in another way.
const NETWORK: &str =
    "ip link set lo up; ip link add d type dummy; ip address add 10.9.0.1/24 dev d; \
                       ip link set d up; ip route add prohibit 10.9.1.0/24; \
                       ip route add unreachable 10.9.2.0/24; ip route add blackhole 10.9.3.0/24; \
                       ip route add throw 10.9.4.0/24; exec \"$@\"";

/// Where the peers are, by what each comes to nothing, and whether that can only be this machine's doing.
const UNREACHABLE: [(&str, &str, bool); 8] = [
    ("127.0.0.1", "Connection refused", false),
    ("10.9.1.1", "Permission denied", true),
    ("10.9.2.1", "No route to host", false),
    ("10.9.3.1", "Invalid argument", true),
    ("10.9.4.1", "Network is unreachable", true),
    ("fd00::1", "Network is unreachable", true),
    ("fe80::1%nowhere", "cannot resolve the name", true),
    ("nobody.invalid", "cannot resolve the name", true),
];

#[test]
fn a_server_on_its_own_key_says_of_each_peer_why() -> Result<()> {
    if !is_root()? {
        println!("not tried: needs root");
        return Ok(());
    }
    let _reserved = reserve(1);
    let dir = RunDir::new("unreachable")?;
    let wrapper = ["unshare", "--net", "sh", "-c", NETWORK, "sh"];
    let mut site = Site::new(dir.path(), |builder| builder.wrapper(&wrapper))?;
    let (own, port) = (site.port, ports::take()?);
    let entry = |(id, (address, ..)): (usize, &(&str, &str, bool))| {
        format!("- {{server_id: {id}, address: '{address}', port: {port}}}\n")
    };
    let list: String = (2..).zip(&UNREACHABLE).map(entry).collect();
    let first = format!("- {{server_id: 1, address: 127.0.0.1, port: {own}}}\n");
    site.write("server_list.yaml", format!("{first}{list}"))?;
    site.ats.start()?;
    let said = |part: &str| {
        let all = lines_of(&site.ats, "WARNING").into_iter();
        all.filter(|line| line.contains(part)).collect::<Vec<_>>()
    };
    for (address, why, at_once) in UNREACHABLE {
        let about = || said(&format!("({address}:{port}): ")).into_iter().find(|l| l.contains(why));
        if at_once {
            wait::until(Duration::from_secs(10), address, || Ok(about()))?;
        }
    }
    let line = "this server is on a key of its own";
    let told = wait::until(PATIENCE, line, || Ok(said(line).pop()))?;
    for (id, (address, why, _)) in (2..).zip(UNREACHABLE) {
        let begin = format!("server {id} ({address}:{port}): ");
        let of_it = told.split("; ").find_map(|part| part.split_once(&begin)).map(|(_, of)| of);
        assert!(of_it.is_some_and(|of| of.contains(why)), "{address}: {of_it:?} in {told}");
    }
    dir.done()
}

/// Files that others put in place, in any order and one after another: what is wrong in between needs no hand.
#[test]
fn what_automation_puts_in_place_is_used_without_a_word_to_the_plugin() -> Result<()> {
    /// Two looks, and what a busy machine makes of them.
    const TWO_LOOKS: Duration = Duration::from_secs(100);
    let _reserved = reserve(5);
    let dir = RunDir::new("put-in-place")?;
    type Harm = (&'static str, fn(&Site) -> Result<()>);
    let harms: [Harm; 5] = [
        ("it had expired", |s| {
            let old = s.authority.issue(&Request::new(PEER_SUBJECT).expired())?;
            s.write_identity(&old)
        }),
        ("only the new key is there", |s| {
            s.write(
                "peer.key",
                s.authority.issue(&Request::new(PEER_SUBJECT))?.key.private_key_to_pem_pkcs8()?,
            )
        }),
        ("the certificate is half written", |s| {
            let all = fs::read(s.path("peer.pem"))?;
            s.write("peer.pem", &all[..all.len() / 2])
        }),
        ("the root is still the old one", |s| {
            s.write("root.pem", crate::stage::authority()?.identity.certificate.to_pem()?)
        }),
        ("the directory is not mounted yet", |s| {
            Ok(fs::rename(s.path("root.pem"), s.path("root.away"))?)
        }),
    ];
    let mut sites = Vec::new();
    for (index, (_, harm)) in harms.iter().enumerate() {
        let home = dir.join(&index.to_string());
        fs::create_dir(&home)?;
        let site = Site::new(&home, |builder| builder)?;
        let good: Vec<(&str, Vec<u8>)> = ["root.pem", "peer.pem", "peer.key"]
            .into_iter()
            .map(|file| Ok((file, fs::read(site.path(file))?)))
            .collect::<Result<_>>()?;
        harm(&site)?;
        sites.push((site, good));
    }
    for (site, _) in &mut sites {
        site.ats.start()?;
    }
    for ((what, _), (site, good)) in harms.iter().zip(&mut sites) {
        site.ats.wait_ready()?;
        let follows = lines_of(&site.ats, "ERROR").pop().unwrap_or_default();
        assert!(follows.starts_with("stek_share does nothing yet"), "{what}: {follows}");
        good.iter().try_for_each(|(file, bytes)| site.write(file, bytes))?;
    }
    for (site, _) in &sites {
        site.ats.wait_diags("the configuration can be used now; started", TWO_LOOKS)?;
        site.ats.wait_diags("(generation ", PATIENCE)?;
    }
    dir.done()
}
