//! Ports are handed out once, to threads and to processes.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use testkit::{ports, Error, Result};

#[test]
fn no_port_is_handed_out_twice_or_while_another_program_uses_it() -> Result<()> {
    let first = ports::take()?;
    // The search goes upwards, so that this one is next, unless somebody else has it.
    let squatter = TcpListener::bind((Ipv4Addr::LOCALHOST, first + 1));
    let threads = (0..4).map(|_| thread::spawn(|| ports::take_many(50)));
    let threads: Vec<_> = threads.collect();
    let mut seen = HashSet::from([first]);
    for thread in threads {
        let taken = thread.join().map_err(|_| Error::new("a thread panicked"))??;
        assert!(taken.iter().all(|port| seen.insert(*port)), "{taken:?} again");
    }
    assert_eq!(seen.len(), 201);
    assert!(!seen.contains(&(first + 1)));
    drop(squatter);
    Ok(())
}
