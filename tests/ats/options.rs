//! Each option has an effect that a test can see.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use stek_share::core::config::OPTIONS;
use testkit::fleet::{self, Plan};
use testkit::run_dir::RunDir;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Result};

use crate::stage::{plugin, reserve, PATIENCE};

/// Where the effect of each option is tested.
const TESTED: &[(&str, &str, &str)] = &[
    (
        "server_id",
        "tests/ats/lifecycle.rs",
        "three_servers_share_rotate_lose_their_leader_and_get_it_back",
    ),
    ("address", "tests/ats/listening.rs", "it_listens_at_its_address_only"),
    ("port", "tests/ats/listening.rs", "a_port_in_use_is_told_of_and_taken_once_it_is_free"),
    (
        "asio_thread_pool_size",
        "tests/ats/options.rs",
        "asio_thread_pool_size_is_the_number_of_workers",
    ),
    (
        "heart_beat_interval",
        "tests/cluster/options.rs",
        "heart_beat_interval_is_how_often_the_leader_is_heard",
    ),
    (
        "election_timeout_lower_bound",
        "tests/cluster/options.rs",
        "election_timeout_lower_bound_is_how_long_a_silent_leader_is_kept",
    ),
    (
        "election_timeout_upper_bound",
        "tests/cluster/options.rs",
        "election_timeout_upper_bound_is_how_long_a_silent_server_is_waited_for",
    ),
    (
        "reserved_log_items",
        "tests/cluster/erasure.rs",
        "reserved_log_items_and_snapshot_distance_bound_the_entries_that_are_kept",
    ),
    (
        "snapshot_distance",
        "tests/cluster/erasure.rs",
        "reserved_log_items_and_snapshot_distance_bound_the_entries_that_are_kept",
    ),
    (
        "client_req_timeout",
        "tests/cluster/options.rs",
        "client_req_timeout_is_how_long_a_proposal_waits_for_agreement",
    ),
    ("key_update_interval", "tests/cluster/age.rs", "an_interval_of_one_second_means_one_second"),
    ("server_list_file", "tests/ats/bad_input.rs", "a_wrong_list_is_named"),
    (
        "root_cert_file",
        "tests/ats/strangers.rs",
        "a_thousand_strangers_of_each_kind_change_nothing",
    ),
    ("server_cert_file", "tests/ats/bad_input.rs", "a_wrong_certificate_or_key_is_named"),
    ("server_key_file", "tests/ats/bad_input.rs", "a_wrong_certificate_or_key_is_named"),
    (
        "cert_verify_str",
        "tests/ats/strangers.rs",
        "a_thousand_strangers_of_each_kind_change_nothing",
    ),
    (
        "bind_address",
        "tests/ats/listening.rs",
        "an_address_elsewhere_means_all_interfaces_and_bind_address_overrides",
    ),
    (
        "handover_timeout",
        "tests/cluster/handover.rs",
        "a_server_that_cannot_install_holds_the_handover_up_for_its_timeout_and_is_named",
    ),
    (
        "startup_wait",
        "tests/ats/startup.rs",
        "a_returning_server_serves_its_first_handshake_with_the_groups_keys",
    ),
    ("ticket_keys", "tests/ats/options.rs", "ticket_keys_is_how_many_keys_decrypt"),
    (
        "max_key_age",
        "tests/cluster/age.rs",
        "without_a_quorum_a_server_goes_on_with_keys_of_its_own_and_comes_back_by_itself",
    ),
    ("state_dir", "tests/cluster/state.rs", "all_restarted_at_once_keep_both_keys"),
    (
        "ticket_scope",
        "tests/ats/sites.rs",
        "a_session_opens_its_own_site_on_every_server_and_no_other",
    ),
    (
        "share_sessions",
        "tests/haproxy/sessions.rs",
        "clients_without_tickets_resume_wherever_round_robin_sends_them",
    ),
];

#[test]
fn each_option_has_its_test() {
    let named: BTreeSet<&str> = TESTED.iter().map(|(option, _, _)| *option).collect();
    assert_eq!(named, OPTIONS.iter().map(|option| option.name).collect());
    for (option, file, test) in TESTED {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let head = format!("\n#[test]\nfn {test}() ");
        assert!(text.contains(&head), "{option}: {file} has no test {test}");
    }
}

/// How many of the process's threads have this name.
fn threads_named(pid: u32, name: &str) -> Result<usize> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    Ok(names.filter(|comm| comm.trim_end() == name).count())
}

#[test]
fn asio_thread_pool_size_is_the_number_of_workers() -> Result<()> {
    let _reserved = reserve(1);
    for workers in [1, 5] {
        let dir = RunDir::new("workers")?;
        let plan = Plan::new(1, &plugin(), Duration::from_secs(3600));
        let fleet = plan.option("asio_thread_pool_size", &workers.to_string()).start(dir.path())?;
        let pid = fleet.servers[0].pid()?;
        // They are there a moment after the start.
        wait::until(PATIENCE, "as many workers as the option says", || {
            Ok((threads_named(pid, "stek_worker")? == workers).then_some(()))
        })?;
        assert_eq!(threads_named(pid, "stek_install")?, 1);
        dir.done()?;
    }
    Ok(())
}

/// Whether a ticket resumes after its key's successor got a successor.
fn outlives_two_rotations(ticket_keys: &str) -> Result<bool> {
    let dir = RunDir::new("ticket-keys")?;
    let plan = Plan::new(1, &plugin(), Duration::from_secs(3));
    let fleet = plan.option("ticket_keys", ticket_keys).start(dir.path())?;
    fleet.servers[0].wait_diags("(generation 1)", PATIENCE)?;
    let ticket = tickets::take(fleet.servers[0].https(), TlsVersion::V12)?;
    let second = fleet::wait_one_key(&fleet.https(), Some(&ticket.key_name), PATIENCE)?;
    assert!(tickets::offer(fleet.servers[0].https(), &ticket)?.resumed, "{ticket_keys} keys");
    fleet::wait_one_key(&fleet.https(), Some(&second), PATIENCE)?;
    let resumed = tickets::offer(fleet.servers[0].https(), &ticket)?.resumed;
    dir.done()?;
    Ok(resumed)
}

#[test]
fn ticket_keys_is_how_many_keys_decrypt() -> Result<()> {
    let _reserved = reserve(1);
    assert!(!outlives_two_rotations("2")?);
    assert!(outlives_two_rotations("3")?);
    Ok(())
}
