//! The table of [`crate::words`]: servers with one fault each, what is said of it, and who cannot say so.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openssl::nid::Nid;
use testkit::fleet::PEER_SUBJECT;
use testkit::host::{
    self, Version, ANY, WITHOUT_MANAGER, WITHOUT_SESSION_IDS, WITH_TICKETS_IN_SNI,
};
use testkit::pki::{write_private, Authority, Purpose, Request};
use testkit::{Context, Result};

use crate::stage::rewrite;

/// A server with one fault.
pub struct Case {
    /// What is done to a server in which nothing is wrong.
    pub plant: fn(&Stage) -> Result<()>,
    /// Variables of the server's environment; `HOME` stands for the directory of the case.
    pub environment: &'static [&'static str],
    /// The hosts that have such a fault: from this version on, and before that one.
    pub hosts: Range<Version>,
    /// How it lives.
    pub lives: Lives,
    /// Whether doctor takes and offers tickets there.
    pub tls: bool,
    /// What each line has to say, in any order; no other line is said.
    pub lines: &'static [&'static [&'static str]],
    /// Who cannot say the same.
    pub except: &'static [Except],
}

/// A case in which nothing is wrong.
pub const NOTHING: Case = Case {
    plant: |_| Ok(()),
    environment: &[],
    hosts: ANY,
    lives: Lives::Plainly,
    tls: false,
    lines: &[],
    except: &[],
};

/// How the server of a case lives. All but the first need root, and are not tried without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lives {
    /// As the test does.
    Plainly,
    /// As a user who is nobody, to whom all its files belong but those that the case makes.
    AsNobody,
    /// By a name, behind two name servers of which the first is silent.
    ByName,
    /// In a list of two of which the other one never runs.
    Alone,
    /// Beside a server with another policy about its clients.
    BesideAnother,
}

/// Who says what is the matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Log,
    Check,
    Doctor,
    Status,
}

pub const ALL: [Who; 4] = [Who::Log, Who::Check, Who::Doctor, Who::Status];

/// One that says something else, since it cannot know better.
pub struct Except {
    pub who: Who,
    pub why: Why,
    /// What it says.
    pub lines: &'static [&'static [&'static str]],
}

/// Why one of the four cannot know, or must not say, what the others say.
#[derive(Debug)]
pub enum Why {
    /// Only a client sees it, which doctor is.
    SeenByClients,
    /// It asks servers, and no plugin runs here.
    NobodyAnswers,
    /// It asks nobody, or knows itself alone.
    AsksNobody,
    /// Who asks the whole fleet says it by what each server answers.
    ToldByAnswers,
    /// It is a decision, which no server can doubt; it is for whoever asks what was decided.
    Decided,
    /// It cannot change while the server runs, and was told at its start.
    ToldAtStart,
    /// It was so when the server started, and has passed.
    Passed,
    /// It hangs on the environment of another process, which root must not go by: OpenSSL would load
    /// whatever that names.
    OfAnotherProcess,
}

/// A server that does not run yet.
pub struct Stage {
    /// The directory of the case.
    pub home: PathBuf,
    pub etc: PathBuf,
    /// The root of its certificates.
    pub authority: Authority,
}

impl Stage {
    fn conf(&self, change: impl Fn(&str) -> String) -> Result<()> {
        rewrite(&self.etc.join("server_conf.yaml"), change)
    }

    fn option(&self, line: &str) -> Result<()> {
        self.conf(|old| format!("{old}{line}\n"))
    }

    fn record(&self, line: &str) -> Result<()> {
        host::set_record(&self.etc, line)
    }

    /// Lists its one site in another file, on line 2 with more words.
    fn other_sites(&self, more: &str) -> Result<()> {
        let pki = self.home.join("pki");
        let [certificate, key] = ["site.pem", "site.key"].map(|name| pki.join(name));
        let line = format!(
            "dest_ip=* {more} ssl_cert_name={} ssl_key_name={}\n",
            certificate.display(),
            key.display()
        );
        fs::write(self.etc.join("sites.config"), format!("\n{line}"))?;
        self.record("proxy.config.ssl.server.multicert.filename STRING sites.config")
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
pub fn state_dir(name: &str) -> PathBuf {
    Path::new("/dev/shm").join(format!("stek-words-{}-{name}", std::process::id()))
}

pub const CASES: &[Case] = &[
    // Nothing is wrong, and nothing is said: a mark of byte order, floats that are whole numbers.
    Case {
        plant: |s| {
            s.conf(|old| format!("\u{feff}{}", old.replace("key_update_interval: 3600", "key_update_interval: 3600.0")))?;
            rewrite(&s.etc.join("server_list.yaml"), |old| format!("\u{feff}{old}"))
        },
        ..NOTHING
    },
    Case {
        plant: |s| s.conf(|old| old.replace("key_update_interval: 3600", "key_update_interval: 36.5")),
        lines: &[&["error: ", "key_update_interval: 36.5 is not a whole number"]],
        ..NOTHING
    },
    // A key with which nobody shakes hands.
    Case {
        plant: |s| {
            s.issued(&Request::new(PEER_SUBJECT).curve(Nid::SECP224R1))
        },
        lines: &[&["error: ", "leads to no handshake", "secp224r1"]],
        ..NOTHING
    },
    // A chain longer than a peer reads.
    Case {
        plant: |s| {
            let own = s.authority.issue(&Request::new(PEER_SUBJECT))?;
            let root = s.authority.identity.certificate.to_pem()?;
            let chain = [own.certificate.to_pem()?, root.repeat(400)].concat();
            s.identity(&chain, &own.key.private_key_to_pem_pkcs8()?)
        },
        lines: &[&["error: ", "excessive message size (", "take out of it all"]],
        ..NOTHING
    },
    // Ends.
    Case {
        plant: |s| s.issued(&Request::new(PEER_SUBJECT).valid(-9_000_000, 1_000_000)),
        lines: &[&["warning: ", "holds a certificate that expires in 11 days, at ", "renew it"]],
        ..NOTHING
    },
    Case {
        plant: |s| s.issued(&Request::new(PEER_SUBJECT).not_yet_valid()),
        lines: &[&["error: ", "is not valid before ", "tried again by itself, every 30 s"]],
        ..NOTHING
    },
    // A purpose that is none of ours.
    Case {
        plant: |s| s.issued(&Request::new(PEER_SUBJECT).purposes(&[Purpose::CodeSigning])),
        lines: &[&["error: ", "does not verify against root_cert_file", "issue it for servers"]],
        ..NOTHING
    },
    // Who may read the key.
    Case {
        plant: |s| {
            let key = s.etc.join("own.key");
            s.issued(&Request::new(PEER_SUBJECT))?;
            fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).context("the key's mode")
        },
        lines: &[&["warning: ", "own.key\" has mode 0644", "chmod 600 it"]],
        ..NOTHING
    },
    // No subject to go by.
    Case {
        plant: |s| s.issued(&Request::new("/")),
        lines: &[&["error: ", "has no subject, by which servers are told"]],
        ..NOTHING
    },
    // A state file that cannot be written.
    Case {
        plant: |s| {
            let dir = s.state_dir("file")?;
            fs::write(&dir, "").context(dir.display())
        },
        lines: &[
            &["warning: state file ", "is not used: it cannot be read: Not a directory"],
            &["warning: state file ", "cannot be written: Not a directory"],
        ],
        ..NOTHING
    },
    // A plugin.config with one word too many.
    Case {
        plant: |s| {
            rewrite(&s.etc.join("plugin.config"), |old| format!("# x\n{} --verbose\n", old.trim_end()))
        },
        lines: &[&["error: ", "plugin.config line 2: gives stek_share.so 2 arguments"]],
        ..NOTHING
    },
    // Set where no file says so.
    Case {
        environment: &["PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE=0"],
        lines: &[&[
            "error: environment of Traffic Server: PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE: 0 means",
            "; set it to 1",
        ]],
        ..NOTHING
    },
    // Set to nought in other digits, and set right where it counts.
    Case {
        plant: |s| s.record("proxy.config.ssl.server.session_ticket.enable INT 00"),
        lines: &[&["error: ", "records.config line ", "session_ticket.enable: 00 means"]],
        ..NOTHING
    },
    Case {
        plant: |s| s.record("proxy.config.ssl.server.session_ticket.enable INT 0"),
        environment: &["PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE=1"],
        ..NOTHING
    },
    Case {
        plant: |s| s.record("proxy.config.ssl.session_cache.timeout INT 2"),
        hosts: ANY.start..WITHOUT_SESSION_IDS,
        lines: &[&["warning: ", "session_cache.timeout: 2 is the time in seconds after which"]],
        ..NOTHING
    },
    Case {
        plant: |s| s.record("proxy.config.ssl.server.session_ticket.number INT 0"),
        lines: &[&["error: ", "session_ticket.number: 0 means that clients of TLS 1.3"]],
        ..NOTHING
    },
    // Sites.
    Case {
        plant: |s| {
            host::change_certificates(&s.etc, |old| {
                format!("# x\n{} ssl_ticket_enabled=0\n", old.trim_end())
            })
        },
        lines: &[&["warning: ", "ssl_multicert.config line 2: ssl_ticket_enabled: 0 means"]],
        ..NOTHING
    },
    Case {
        plant: |s| {
            s.option("ticket_scope: host")?;
            let sni = "sni:\n- fqdn: a.example\n  verify_client: STRICT\n";
            fs::write(s.etc.join("sni.yaml"), sni).context("sni.yaml")
        },
        lines: &[&["warning: ", "sni.yaml line 3: a.example: verify_client: STRICT asks"]],
        ..NOTHING
    },
    // The same in other clothes: what a variable, a line or a file says as the host reads it.
    Case {
        environment: &["PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE=0x0"],
        lines: &[&["error: ", "SESSION_TICKET_ENABLE: 0x0 means that Traffic Server gives out no"]],
        ..NOTHING
    },
    Case {
        environment: &["PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_NUMBER=0K"],
        lines: &[&["error: ", "SESSION_TICKET_NUMBER: 0K means that clients of TLS 1.3"]],
        ..NOTHING
    },
    Case {
        environment: &["PROXY_CONFIG_SSL_SESSION_CACHE_TIMEOUT=59"],
        hosts: ANY.start..WITHOUT_SESSION_IDS,
        lines: &[&["warning: ", "SESSION_CACHE_TIMEOUT: 59 is the time in seconds after which"]],
        ..NOTHING
    },
    Case {
        plant: |s| {
            s.record("proxy.config.ssl.server.session_ticket.enable INT 0")?;
            s.record("proxy.config.ssl.server.session_ticket.enable INT 1")
        },
        ..NOTHING
    },
    Case {
        plant: |s| s.record("\tproxy.config.ssl.server.session_ticket.enable\tINT\t0\r"),
        hosts: ANY.start..WITHOUT_MANAGER,
        lines: &[&["error: ", "records.config line ", "session_ticket.enable: 0 means"]],
        ..NOTHING
    },
    Case {
        plant: |s| {
            rewrite(&s.etc.join("records.config"), |old| {
                format!("{old}# CONFIG proxy.config.ssl.server.session_ticket.enable INT 0\n")
            })
        },
        hosts: ANY.start..WITHOUT_MANAGER,
        ..NOTHING
    },
    Case {
        plant: |s| s.other_sites("SSL_TICKET_ENABLED=\"0\""),
        hosts: ANY.start..WITHOUT_SESSION_IDS,
        lines: &[&["warning: ", "sites.config line 2: SSL_TICKET_ENABLED: 0 means"]],
        ..NOTHING
    },
    // 11 reads that form still, but no capital letters.
    Case {
        plant: |s| s.other_sites("SSL_TICKET_ENABLED=\"0\""),
        hosts: WITHOUT_SESSION_IDS..ANY.end,
        tls: true,
        ..NOTHING
    },
    Case {
        plant: |s| s.other_sites("ssl_ticket_enabled=\"0\""),
        lines: &[&["warning: ", "sites.config line 2: ssl_ticket_enabled: 0 means"]],
        ..NOTHING
    },
    // What an operator has prepared for an upgrade, or left behind after it, is read by nobody.
    Case {
        plant: |s| {
            let sites = "ssl_multicert:\n- ssl_cert_name: x.pem\n  ssl_ticket_enabled: 0\n";
            fs::write(s.etc.join("ssl_multicert.yaml"), sites).context("ssl_multicert.yaml")
        },
        hosts: ANY.start..WITHOUT_SESSION_IDS,
        ..NOTHING
    },
    Case {
        plant: |s| {
            let sites = "ssl_cert_name=x.pem ssl_ticket_enabled=0\n";
            fs::write(s.etc.join("ssl_multicert.config"), sites).context("ssl_multicert.config")
        },
        hosts: WITHOUT_SESSION_IDS..ANY.end,
        ..NOTHING
    },
    Case {
        plant: |s| {
            s.option("ticket_scope: host")?;
            let sni = "sni: [{'verify_client': \"MODERATE\", fqdn: b.example}]\n";
            fs::write(s.etc.join("names.yaml"), sni)?;
            s.record("proxy.config.ssl.servername.filename STRING names.yaml")
        },
        lines: &[&["warning: ", "names.yaml line 1: b.example: verify_client: MODERATE asks"]],
        ..NOTHING
    },
    Case {
        plant: |s| {
            let (old, new) = (s.etc.join("server_conf.yaml"), s.etc.join("a conf # 1.yaml"));
            fs::copy(&old, &new)?;
            rewrite(&s.etc.join("plugin.config"), |line| {
                let plugin = line.split_whitespace().next().unwrap_or_default();
                format!("\t\"{plugin}\"\t\"{}\" # here\r\n", new.display())
            })
        },
        ..NOTHING
    },
    Case {
        plant: |s| {
            rewrite(&s.etc.join("plugin.config"), |line| {
                format!("{}\n", line.split_whitespace().next().unwrap_or_default())
            })
        },
        lines: &[&["error: ", "plugin.config line 1: gives stek_share.so 0 arguments"]],
        ..NOTHING
    },
    // Names that are found late are used.
    Case {
        lives: Lives::ByName,
        except: &[Except {
            who: Who::Log,
            why: Why::Passed,
            lines: &[&["warning: address server1.example cannot be resolved", "later is used"]],
        }],
        ..NOTHING
    },
    // Who may read the key, where the server is not root.
    Case {
        plant: |s| s.issued(&Request::new(PEER_SUBJECT)),
        lives: Lives::AsNobody,
        lines: &[&["error: ", "server_key_file: ", "cannot be read, at ", "permission denied; let the user"]],
        except: &[Except { who: Who::Status, why: Why::NobodyAnswers, lines: &[] }],
        ..NOTHING
    },
    // A policy of OpenSSL's that takes no such certificate.
    Case {
        plant: |s| {
            let policy = "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\n\
                          SignatureAlgorithms = RSA+SHA256\n";
            fs::write(s.home.join("openssl.cnf"), policy)?;
            s.issued(&Request::new(PEER_SUBJECT))
        },
        environment: &["OPENSSL_CONF=HOME/openssl.cnf"],
        lines: &[&["error: ", "leads to no handshake", "(OPENSSL_CONF)"]],
        except: &[
            Except { who: Who::Check, why: Why::OfAnotherProcess, lines: OTHER_POLICY },
            Except { who: Who::Doctor, why: Why::OfAnotherProcess, lines: OTHER_POLICY },
            Except { who: Who::Status, why: Why::NobodyAnswers, lines: &[] },
        ],
        ..NOTHING
    },
    // Something else in the place of a state file: a directory, a pipe, a file of another server's.
    Case {
        plant: |s| {
            let dir = s.state_dir("directory")?;
            fs::create_dir_all(dir.join("server-1.state")).context(dir.display())
        },
        lines: &[
            &["warning: state file ", "is not used: it is no regular file, or belongs to"],
            &["warning: state file ", "cannot be written: Is a directory"],
        ],
        ..NOTHING
    },
    Case {
        plant: |s| s.record("proxy.config.ssl.server.max_early_data INT 16384"),
        lines: &[&["warning: ", "max_early_data: 16384 allows early data (0-RTT)"]],
        except: &[
            Except { who: Who::Log, why: Why::Decided, lines: &[] },
            Except { who: Who::Status, why: Why::Decided, lines: &[] },
        ],
        ..NOTHING
    },
    Case {
        plant: |s| s.option(&format!("state_dir: {}", s.home.join("state").display())),
        lines: &[&["warning: state_dir ", "not on memory-backed storage"]],
        except: &[Except { who: Who::Status, why: Why::ToldAtStart, lines: &[] }],
        ..NOTHING
    },
    // One version of TLS alone, at which doctor takes tickets.
    Case { plant: |s| s.record("proxy.config.ssl.TLSv1_2 INT 0"), tls: true, ..NOTHING },
    Case { plant: |s| s.record("proxy.config.ssl.TLSv1_3 INT 0"), tls: true, ..NOTHING },
    // Clients without a certificate see nothing else.
    Case {
        plant: |s| {
            let bundle = s.authority.identity.write(&s.etc, "bundle")?.certificate;
            s.record("proxy.config.ssl.client.certification_level INT 2")?;
            s.record(&format!("proxy.config.ssl.CA.cert.filename STRING {}", bundle.display()))
        },
        tls: true,
        except: &[Except {
            who: Who::Doctor,
            why: Why::SeenByClients,
            lines: &[&["warning: ", "a client certificate is demanded there", "give --cert"]],
        }],
        ..NOTHING
    },
    // Two that do not ask the same of their clients.
    Case {
        plant: |s| s.record("proxy.config.ssl.client.certification_level INT 1"),
        lives: Lives::BesideAnother,
        lines: &[&["warning: ", "not all servers ask the same", "certification_level"]],
        except: &[
            Except { who: Who::Log, why: Why::AsksNobody, lines: &[] },
            Except { who: Who::Check, why: Why::AsksNobody, lines: &[] },
        ],
        ..NOTHING
    },
    // Words about tickets in sni.yaml, which 9.2 does not know; nobody says that they count.
    Case {
        plant: |s| {
            let sni = "sni:\n- fqdn: a.example\n  ssl_ticket_enabled: 0\n";
            fs::write(s.etc.join("sni.yaml"), sni).context("sni.yaml")
        },
        hosts: ANY.start..WITH_TICKETS_IN_SNI,
        ..NOTHING
    },
    // The same where it counts.
    Case {
        plant: |s| {
            let sni = "sni:\n- fqdn: a.example\n  ssl_ticket_enabled: 0\n";
            fs::write(s.etc.join("sni.yaml"), sni).context("sni.yaml")
        },
        hosts: WITH_TICKETS_IN_SNI..ANY.end,
        lines: &[&["warning: ", "sni.yaml line 3: a.example: ssl_ticket_enabled: 0 means"]],
        ..NOTHING
    },
    // A server that reaches nobody.
    Case {
        lives: Lives::Alone,
        lines: &[&["warning: ", "this server is on a key of its own", "server 2 (127.0.0.1:", "refused"]],
        except: &[
            Except { who: Who::Check, why: Why::AsksNobody, lines: &[] },
            Except { who: Who::Doctor, why: Why::ToldByAnswers, lines: ALONE },
            Except { who: Who::Status, why: Why::ToldByAnswers, lines: ALONE },
        ],
        ..NOTHING
    },
];

/// What is said of a policy that only the running server has.
pub const OTHER_POLICY: &[&[&str]] =
    &[&["warning: environment of Traffic Server: OPENSSL_CONF: ", "look once more with it"]];

/// What a server without its group answers.
pub const ALONE: &[&[&str]] = &[&["it encrypts with a key of its own"]];
