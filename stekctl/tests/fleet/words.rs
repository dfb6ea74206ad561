//! One matter is one line, wherever it is read: what the plugin logs, `check`, `doctor` and `status` say
//! the same of each fault that was met in the field, word for word.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openssl::nid::Nid;
use testkit::ats::Ats;
use testkit::fleet::{Place, PEER_SUBJECT};
use testkit::pki::{write_private, Authority, Purpose, Request};
use testkit::run_dir::RunDir;
use testkit::{Context, Error, Result};

use crate::stage::{machine, on, plan, rewrite, text, turn, Said, PATIENCE};

/// What each line begins with that says what follows from those above it.
const FOLLOWS: &str = "stek_share does nothing";

/// A server with one fault.
struct Case {
    /// What is done to a server in which nothing is wrong.
    plant: fn(&Stage) -> Result<()>,
    /// Variables of the server's environment.
    environment: &'static [&'static str],
    /// What each line has to say, in any order; no other line is said.
    lines: &'static [&'static [&'static str]],
}

/// A server that does not run yet.
struct Stage {
    etc: PathBuf,
    /// The root of its certificates.
    authority: Authority,
}

impl Stage {
    fn conf(&self, change: impl Fn(&str) -> String) -> Result<()> {
        rewrite(&self.etc.join("server_conf.yaml"), change)
    }

    fn option(&self, line: &str) -> Result<()> {
        self.conf(|old| format!("{old}{line}\n"))
    }

    fn record(&self, line: &str) -> Result<()> {
        rewrite(&self.etc.join("records.config"), |old| format!("{old}CONFIG {line}\n"))
    }

    /// Gives it this certificate and key, under the root that is there.
    fn identity(&self, certificate: &[u8], key: &[u8]) -> Result<()> {
        let path = |name: &str| self.etc.join(name);
        fs::write(path("own.pem"), certificate)?;
        write_private(&path("own.key"), key)?;
        fs::write(path("own-root.pem"), self.authority.identity.certificate.to_pem()?)?;
        self.conf(|old| {
            let is_named = |line: &&str| {
                ["root_cert_file", "server_cert_file", "server_key_file"]
                    .iter()
                    .all(|name| !line.starts_with(name))
            };
            let kept: String =
                old.lines().filter(is_named).map(|line| format!("{line}\n")).collect();
            format!(
                "{kept}root_cert_file: own-root.pem\nserver_cert_file: own.pem\n\
                 server_key_file: own.key\n"
            )
        })
    }

    fn issued(&self, request: &Request) -> Result<()> {
        let own = self.authority.issue(request)?;
        self.identity(&own.certificate.to_pem()?, &own.key.private_key_to_pem_pkcs8()?)
    }

    /// Has it keep its state file there.
    fn state_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = state_dir(name);
        self.option(&format!("state_dir: {}", dir.display()))?;
        Ok(dir)
    }
}

/// On memory-backed storage, about which nothing is said.
fn state_dir(name: &str) -> PathBuf {
    Path::new("/dev/shm").join(format!("stek-words-{}-{name}", std::process::id()))
}

const CASES: &[Case] = &[
    // Nothing is wrong, and nothing is said: a mark of byte order, floats that are whole numbers.
    Case {
        plant: |s| {
            s.conf(|old| format!("\u{feff}{}", old.replace("key_update_interval: 3600", "key_update_interval: 3600.0")))?;
            rewrite(&s.etc.join("server_list.yaml"), |old| format!("\u{feff}{old}"))
        },
        environment: &[],
        lines: &[],
    },
    Case {
        plant: |s| s.conf(|old| old.replace("key_update_interval: 3600", "key_update_interval: 36.5")),
        environment: &[],
        lines: &[&["error: ", "key_update_interval: 36.5 is not a whole number"]],
    },
    // A key with which nobody shakes hands.
    Case {
        plant: |s| {
            s.issued(&Request::new(PEER_SUBJECT).curve(Nid::SECP224R1))
        },
        environment: &[],
        lines: &[&["error: ", "leads to no handshake", "secp224r1"]],
    },
    // A chain longer than a peer reads.
    Case {
        plant: |s| {
            let own = s.authority.issue(&Request::new(PEER_SUBJECT))?;
            let root = s.authority.identity.certificate.to_pem()?;
            let chain = [own.certificate.to_pem()?, root.repeat(400)].concat();
            s.identity(&chain, &own.key.private_key_to_pem_pkcs8()?)
        },
        environment: &[],
        lines: &[&["error: ", "excessive message size (", "take out of it all"]],
    },
    // Ends.
    Case {
        plant: |s| s.issued(&Request::new(PEER_SUBJECT).valid(-9_000_000, 1_000_000)),
        environment: &[],
        lines: &[&["warning: ", "holds a certificate that expires in 11 days, at ", "renew it"]],
    },
    Case {
        plant: |s| s.issued(&Request::new(PEER_SUBJECT).not_yet_valid()),
        environment: &[],
        lines: &[&["error: ", "is not valid before ", "tried again by itself, every 30 s"]],
    },
    // A purpose that is none of ours.
    Case {
        plant: |s| s.issued(&Request::new(PEER_SUBJECT).purposes(&[Purpose::CodeSigning])),
        environment: &[],
        lines: &[&["error: ", "does not verify against root_cert_file", "issue it for servers"]],
    },
    // Who may read the key.
    Case {
        plant: |s| {
            let key = s.etc.join("own.key");
            s.issued(&Request::new(PEER_SUBJECT))?;
            fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).context("the key's mode")
        },
        environment: &[],
        lines: &[&["warning: ", "own.key\" has mode 0644", "chmod 600 it"]],
    },
    // No subject to go by.
    Case {
        plant: |s| s.issued(&Request::new("/")),
        environment: &[],
        lines: &[&["error: ", "has no subject, by which servers are told"]],
    },
    // A state file that cannot be written.
    Case {
        plant: |s| {
            let dir = s.state_dir("file")?;
            fs::write(&dir, "").context(dir.display())
        },
        environment: &[],
        lines: &[
            &["warning: state file ", "is not used: it cannot be read: Not a directory"],
            &["warning: state file ", "cannot be written: Not a directory"],
        ],
    },
    // A plugin.config with one word too many.
    Case {
        plant: |s| {
            rewrite(&s.etc.join("plugin.config"), |old| format!("# x\n{} --verbose\n", old.trim_end()))
        },
        environment: &[],
        lines: &[&["error: ", "plugin.config line 2: gives stek_share.so 2 arguments"]],
    },
    // Set where no file says so.
    Case {
        plant: |_| Ok(()),
        environment: &["PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE=0"],
        lines: &[&[
            "error: environment of Traffic Server: PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE: 0 means",
            "; set it to 1",
        ]],
    },
    // Set to nought in other digits, and set right where it counts.
    Case {
        plant: |s| s.record("proxy.config.ssl.server.session_ticket.enable INT 00"),
        environment: &[],
        lines: &[&["error: ", "records.config line ", "session_ticket.enable: 00 means"]],
    },
    Case {
        plant: |s| s.record("proxy.config.ssl.server.session_ticket.enable INT 0"),
        environment: &["PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE=1"],
        lines: &[],
    },
    Case {
        plant: |s| s.record("proxy.config.ssl.session_cache.timeout INT 2"),
        environment: &[],
        lines: &[&["warning: ", "session_cache.timeout: 2 is the time in seconds after which"]],
    },
    Case {
        plant: |s| s.record("proxy.config.ssl.server.session_ticket.number INT 0"),
        environment: &[],
        lines: &[&["error: ", "session_ticket.number: 0 means that clients of TLS 1.3"]],
    },
    // Sites.
    Case {
        plant: |s| {
            rewrite(&s.etc.join("ssl_multicert.config"), |old| {
                format!("# x\n{} ssl_ticket_enabled=0\n", old.trim_end())
            })
        },
        environment: &[],
        lines: &[&["error: ", "ssl_multicert.config line 2: ssl_ticket_enabled: 0 means"]],
    },
    Case {
        plant: |s| {
            s.option("ticket_scope: host")?;
            let sni = "sni:\n- fqdn: a.example\n  verify_client: STRICT\n";
            fs::write(s.etc.join("sni.yaml"), sni).context("sni.yaml")
        },
        environment: &[],
        lines: &[&["warning: ", "sni.yaml line 3: a.example: verify_client: STRICT asks"]],
    },
];

#[test]
fn plugin_check_doctor_and_status_say_the_same_word_for_word() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-words")?;
    let mut failed = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let home = dir.join(&format!("case-{number}"));
        fs::create_dir(&home)?;
        if let Err(error) = agree(&home, case) {
            failed.push(format!("case {number} {:?}: {error}", case.lines));
        }
    }
    let _ = fs::remove_file(state_dir("file"));
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    dir.done()
}

fn agree(home: &Path, case: &Case) -> Result<()> {
    let wrapper = match case.environment {
        [] => Vec::new(),
        variables => ["env"].iter().chain(variables).map(ToString::to_string).collect(),
    };
    let place = Place { address: Ipv4Addr::LOCALHOST.into(), wrapper };
    let mut fleet = plan(1)?.places(&[place]).prepare(home)?;
    let ats = &mut fleet.servers[0];
    (case.plant)(&Stage { etc: ats.etc(), authority: Authority::new("/CN=words")? })?;
    ats.start()?;
    // Not all of them give tickets.
    ats.wait_first(|address| Ok(TcpStream::connect(address)?))?;
    let is_refused = ats.diags().contains(FOLLOWS);
    if !is_refused {
        ats.wait_diags("(generation ", PATIENCE)?;
    }
    let logged = || logged(ats);
    let all_there = || Ok((logged().len() >= case.lines.len()).then_some(()));
    testkit::wait::until(PATIENCE, "the lines of the log", all_there)?;
    let plugin = logged();
    let proc = machine(home, &[ats])?;
    let conf = ats.etc().join("server_conf.yaml");
    let check = said(&on(ats, &["check", text(&conf)])?);
    let etc = ats.etc();
    let place = ["--ats-config", text(&etc), "--timeout", "10"];
    let doctor = crate::stage::stekctl(&[&place[..], &["doctor", "--proc", text(&proc)]].concat())?;
    let status = crate::stage::stekctl(&[&place[..], &["status"]].concat())?;
    compare("check", &plugin, &check)?;
    compare("doctor", &plugin, &said(&doctor))?;
    let status: BTreeSet<String> = if is_refused {
        status
            .err
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(_, l)| l.to_owned())
            .collect()
    } else {
        let reason = |line: &str| Some(line.split_once(": server 1: ")?.1.to_owned());
        status
            .out
            .lines()
            .filter(|line| !line.contains("LimitMEMLOCK"))
            .filter_map(reason)
            .collect()
    };
    compare("status", &plugin, &status)?;
    for parts in case.lines {
        let is_it = |line: &&String| {
            parts.iter().all(|part| {
                format!("error: {line}").contains(part) || format!("warning: {line}").contains(part)
            })
        };
        if plugin.iter().filter(is_it).count() != 1 {
            return Err(Error::new(format!("not one line with {parts:?}: {plugin:#?}")));
        }
    }
    if plugin.len() == case.lines.len() {
        Ok(())
    } else {
        Err(Error::new(format!("nobody expected all of {plugin:#?}")))
    }
}

fn compare(who: &str, plugin: &BTreeSet<String>, said: &BTreeSet<String>) -> Result<()> {
    if plugin == said {
        Ok(())
    } else {
        Err(Error::new(format!("the plugin says {plugin:#?}, {who} {said:#?}")))
    }
}

/// The warnings and errors of the plugin.
fn logged(ats: &Ats) -> BTreeSet<String> {
    let diags = ats.diags();
    let lines = diags.lines().filter(|line| line.contains("WARNING: ") || line.contains("ERROR: "));
    let ours = lines.filter_map(|line| Some(line.split_once("[stek_share] ")?.1));
    let ours = ours.filter(|line| !line.starts_with(FOLLOWS) && !line.contains("LimitMEMLOCK"));
    ours.map(str::to_owned).collect()
}

/// What a command says of faults.
fn said(said: &Said) -> BTreeSet<String> {
    let line = |line: &&str| {
        let (word, rest) = line.split_once(": ")?;
        // Of what a server says doctor names the server; that one that was refused does not answer is a
        // matter of its own.
        let rest = rest.strip_prefix("fleet: server 1: ").unwrap_or(rest);
        let is_fault = matches!(word, "error" | "warning") && !rest.starts_with("fleet: ");
        is_fault.then(|| rest.to_owned())
    };
    said.lines().iter().filter_map(line).collect()
}
