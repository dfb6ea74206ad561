//! Further servers of which doctor must not say what is not so: one version of TLS together with certificates
//! of clients, certificates of two kinds, the same server by two names.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::run_dir::RunDir;
use testkit::{Context, Result};

use crate::causes::{assert_says, demand, doctor, multicert, planted, record, speak, Plant};
use crate::stage::{machine, on, text, turn};

fn only(version: &str, etc: &Path) -> Result<()> {
    let other = if version == "TLSv1_2" { "TLSv1_3" } else { "TLSv1_2" };
    speak(etc, other, "INT 0")
}

/// A certificate of each kind of key under one name, as sites have that serve old clients, too.
fn two_kinds(etc: &Path, plant: &Plant) -> Result<()> {
    let beside = |name: &str| plant.bundle.with_file_name(name);
    let (old, key) = (beside("old.pem"), beside("old.key"));
    if !old.exists() {
        let words = "req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=localhost -keyout";
        let mut make = Command::new("openssl");
        make.args(words.split(' ')).arg(&key).arg("-out").arg(&old);
        make.output().context("openssl")?;
    }
    let both = |one: &Path, other: &Path| format!("{},{}", one.display(), other.display());
    let site = &plant.site;
    multicert(etc, text(&site.certificate), &both(&site.certificate, &old))?;
    multicert(etc, text(&site.key), &both(&site.key, &key))
}

#[test]
fn what_is_right_in_odd_ways_is_no_fault() -> Result<()> {
    type Planting = fn(&Path, &Plant) -> Result<()>;
    /// Pairs of servers that are the same.
    const PAIRS: [Planting; 6] = [
        |etc, plant| only("TLSv1_2", etc).and_then(|()| demand(etc, plant)),
        |etc, plant| only("TLSv1_3", etc).and_then(|()| demand(etc, plant)),
        |etc, plant| {
            record(etc, "proxy.config.ssl.client.certification_level", "INT 1")?;
            let file = format!("STRING {}", plant.bundle.display());
            record(etc, "proxy.config.ssl.CA.cert.filename", &file)
        },
        two_kinds,
        |etc, _| record(etc, "proxy.config.ssl.session_cache", "INT 0"),
        |etc, _| {
            let sni = "sni:\n- fqdn: elsewhere.test\n  verify_client: STRICT\n";
            fs::write(etc.join("sni.yaml"), sni).context("sni.yaml")
        },
    ];
    let _turn = turn();
    let dir = RunDir::new("ctl-members")?;
    let twice: Vec<Planting> = PAIRS.into_iter().flat_map(|plant| [plant, plant]).collect();
    let (fleet, plant) = planted(&dir, "site", &twice)?;
    let known = ["--cert", text(&plant.client.certificate), "--key", text(&plant.client.key)];
    let strange = ["--cert", text(&plant.other.certificate), "--key", text(&plant.other.key)];
    let demanded: &[&str] = &["warning: ", "a client certificate is demanded there"];
    let refused: &[&str] = &["warning: ", "refuses the certificate of --cert: "];
    for (pair, version) in [([0, 1], "1.2"), ([2, 3], "1.3")] {
        let told = |client: &[&str], lines: &[&[&str]], code| {
            let said = doctor(&dir, &fleet, &pair, client)?;
            assert_says(&said, lines, code).context(format_args!("TLS {version} alone, {client:?}"))
        };
        told(&[], &[demanded], 1)?;
        told(&known, &[], 0)?;
        told(&strange, &[refused, refused], 1)?;
    }
    assert_says(&doctor(&dir, &fleet, &[4, 5], &[])?, &[], 0)?;
    assert_says(&doctor(&dir, &fleet, &[4, 5], &known)?, &[], 0)?;
    assert_says(&doctor(&dir, &fleet, &[4, 5], &strange)?, &[refused, refused], 1)?;
    for pair in [[6, 7], [8, 9], [10, 11]] {
        assert_says(&doctor(&dir, &fleet, &pair, &[])?, &[], 0)?;
    }
    // One server by its name and by its address.
    let ats = &fleet.servers[8];
    let proc = machine(dir.path(), &[ats])?;
    let port = fleet.https()[8].port();
    let places = [format!("localhost:{port}"), format!("127.0.0.1:{port}")];
    let words = ["doctor", "--offline", "--proc", text(&proc), "--sni", "localhost", "--tls"];
    let said = on(ats, &[&words[..], &[&places[0], &places[1]]].concat())?;
    assert_says(&said, &[], 0)?;
    dir.done()
}
