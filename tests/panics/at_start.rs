//! Panics while Traffic Server starts or ends: it does so all the same.

use testkit::sys::Signal;
use testkit::Result;

use crate::stage::{serves, Stage};

/// In TSPluginInit: the server has its own key until a message starts the plugin, and a panic in
/// that late start is not the last word either.
#[test]
fn a_panic_in_init_and_in_a_late_start_leaves_the_next_reload_free() -> Result<()> {
    let mut stage = Stage::new("init", 1)?;
    stage.plant(0, "init")?;
    stage.fleet.start()?;
    stage.told(0, "init")?;
    let own = "TSPluginInit ended by an internal error; Traffic Server goes on";
    stage.wait_line(0, 0, own)?;
    serves(&stage.fleet.servers[0])?;
    stage.plant(0, "late-start")?;
    stage.send(0, "reload")?;
    stage.told(0, "late-start")?;
    stage.wait_line(0, 0, "a late start ended by an internal error; Traffic Server goes on")?;
    stage.send(0, "reload")?;
    stage.wait_line(0, 0, "reload: the configuration can be used now; started")?;
    stage.all_take_part()?;
    stage.done()
}

/// At PORTS_INITIALIZED: the installer must hear of it, or it would never touch the host's keys.
#[test]
fn a_panic_at_ports_initialized_does_not_keep_the_groups_keys_out() -> Result<()> {
    let mut stage = Stage::new("ports", 1)?;
    stage.plant(0, "hook-ports")?;
    stage.fleet.start()?;
    stage.told(0, "hook-ports")?;
    stage.all_take_part()?;
    stage.done()
}

/// In the installer's thread itself, around all that can begin anew: the one panic that lasts.
#[test]
fn a_panic_of_the_whole_installer_leaves_the_servers_own_key_and_says_so() -> Result<()> {
    let mut stage = Stage::new("installer", 1)?;
    stage.plant(0, "installer-thread")?;
    stage.fleet.start()?;
    stage.told(0, "installer-thread")?;
    stage.wait_line(0, 0, "the installer ended by an internal error; the ticket keys installed")?;
    serves(&stage.fleet.servers[0])?;
    let process = stage.process_of(0)?;
    stage.send(0, "reload")?;
    stage.wait_line(0, 0, "reload: not done: the plugin has ended, for the reason above")?;
    assert_eq!(stage.process_of(0)?, process);
    stage.fleet.servers[0].restart()?;
    stage.all_take_part()?;
    stage.done()
}

/// In the first install of all, while TSPluginInit waits for it.
#[test]
fn a_panic_in_the_first_install_is_followed_by_another_try() -> Result<()> {
    let mut stage = Stage::new("first-install", 1)?;
    stage.plant(0, "installer")?;
    stage.fleet.start()?;
    stage.told(0, "installer")?;
    stage.all_take_part()?;
    stage.done()
}

/// At SHUTDOWN: the server ends as if nothing had been.
#[test]
fn a_panic_at_shutdown_does_not_change_how_the_server_ends() -> Result<()> {
    let mut stage = Stage::without_manager("shutdown")?;
    stage.fleet.start()?;
    stage.all_take_part()?;
    stage.plant(0, "hook-shutdown")?;
    let stopped = stage.fleet.servers[0].stop(Signal::Interrupt)?;
    assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
    stage.told(0, "hook-shutdown")?;
    stage.done()
}
