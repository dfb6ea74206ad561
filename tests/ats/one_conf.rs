//! One server_conf.yaml for all servers, byte for byte: each finds itself by a name of its certificate,
//! and is refused under any other.

use std::fs;
use std::time::Duration;

use testkit::fleet::{wait_one_key, Plan};
use testkit::pki::{Authority, Request};
use testkit::run_dir::RunDir;
use testkit::Result;

use crate::stage::plugin;

const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn one_configuration_serves_all_servers() -> Result<()> {
    let dir = RunDir::new("one-conf")?;
    let mut fleet = Plan::new(3, &plugin(), Duration::from_secs(3600)).prepare(dir.path())?;
    let authority = Authority::new("/CN=root")?;
    // A subject for all, an alternative name for each, of both kinds.
    let names = [("URI:spiffe://example.org/one", "URI:spiffe://example.org/one")];
    let names = names.iter().copied().chain([("two.example", "DNS:two.example")]);
    let names: Vec<_> = names.chain([("three.example", "DNS:Three.Example")]).collect();
    let ports = fleet.raft_ports.clone();
    let entry = |((id, port), (_, name)): ((usize, &u16), &(&str, &str))| {
        format!(
            "- {{server_id: {id}, address: 127.0.0.1, port: {port}, cert_verify_str: '{name}'}}\n"
        )
    };
    let list: String = (1..).zip(&ports).zip(&names).map(entry).collect();
    let conf = "server_id: auto\naddress: auto\nport: auto\nkey_update_interval: 3600\n\
                server_list_file: server_list.yaml\nroot_cert_file: ca.crt\n\
                server_cert_file: server.pem\nserver_key_file: server.key\n";
    for (ats, (name, _)) in fleet.servers.iter().zip(&names) {
        let etc = ats.etc();
        authority.issue(&Request::new("/CN=edge").names(&[name]))?.write(&etc, "server")?;
        let root = authority.identity.write(&dir.join("pki"), "root")?.certificate;
        fs::copy(root, etc.join("ca.crt"))?;
        fs::write(etc.join("server_list.yaml"), &list)?;
        fs::write(etc.join("server_conf.yaml"), conf)?;
    }
    fleet.start()?;
    wait_one_key(&fleet.https(), None, PATIENCE)?;
    for (ats, port) in fleet.servers.iter().zip(&ports) {
        let diags = ats.diags();
        assert!(diags.contains(&format!("127.0.0.1:{port}")), "{diags}");
        assert!(!diags.contains("[stek_share] refused"), "{diags}");
    }
    dir.done()
}
