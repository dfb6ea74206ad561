//! A reload that is refused for what may pass is tried again by itself.

use std::fs;
use std::time::Duration;

use testkit::fleet::Plan;
use testkit::run_dir::RunDir;
use testkit::{wait, Result};

use crate::stage::{self, rewrite, send, turn, wait_line, PATIENCE};

/// Two looks, and what a busy machine makes of them.
const TWO_LOOKS: Duration = Duration::from_secs(100);

#[test]
fn a_reload_that_waits_for_a_file_is_done_when_it_is_there() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("reload-again")?;
    let plan = Plan::new(1, &stage::plugin()?, Duration::from_secs(3600)).manager();
    let fleet = plan.start(dir.path())?;
    let ats = &fleet.servers[0];
    ats.wait_diags("(generation ", PATIENCE)?;
    rewrite(ats, "server_conf.yaml", |conf| conf.replace(": 3600", ": 1800"))?;
    let (list, away) = (ats.etc().join("server_list.yaml"), ats.etc().join("away.yaml"));
    fs::rename(&list, &away)?;
    let from = ats.diags().len();
    send(ats, "reload", "reload: nothing was changed yet; it is tried again by itself every 30 s")?;
    fs::rename(&away, &list)?;
    let news = || ats.diags().get(from..).unwrap_or_default().to_owned();
    let done = || Ok(news().contains("changed: key_update_interval").then_some(()));
    wait::until(TWO_LOOKS, "the reload", done)?;
    wait_line(ats, from, "NOTE: [stek_share] reload: what was refused can be used now")?;
    assert_eq!(news().matches("server_list_file").count(), 1, "{}", news());
    // What does not pass by itself waits for a hand.
    rewrite(ats, "server_conf.yaml", |conf| conf.replace(": 1800", ": many"))?;
    send(
        ats,
        "reload",
        "reload: nothing was changed; correct the above and send the message again",
    )?;
    dir.done()
}

/// Traffic Server tells of its own reloads, which are for the plugin's files as well.
#[test]
fn a_reload_of_traffic_server_reloads_the_plugin_too() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("reload-host")?;
    let plan = Plan::new(1, &stage::plugin()?, Duration::from_secs(3600)).manager();
    let fleet = plan.start(dir.path())?;
    let ats = &fleet.servers[0];
    ats.wait_diags("(generation ", PATIENCE)?;
    rewrite(ats, "server_conf.yaml", |conf| conf.replace(": 3600", ": 1800"))?;
    let from = ats.diags().len();
    ats.ctl(&["config", "reload"])?;
    wait_line(ats, from, "reload: ordered by traffic_ctl config reload on this server")?;
    wait_line(ats, from, "reload: done; changed: key_update_interval")?;
    // Once for each.
    let from = ats.diags().len();
    ats.ctl(&["config", "reload"])?;
    wait_line(ats, from, "reload: done; no changes")?;
    ats.ctl(&["config", "reload"])?;
    let count = || {
        let news = ats.diags().get(from..).unwrap_or_default().to_owned();
        Ok((news.matches("reload: done; ").count() == 2).then_some(news))
    };
    let news = wait::until(PATIENCE, "a second reload", count)?;
    assert_eq!(news.matches("reload: ordered by ").count(), 2, "{news}");
    dir.done()
}
