//! Promise 8, *the host stays up*: nothing that happens here panics, or leaves a host without keys.
//!
//! That a start and a shutdown keep their limits, and that no server is busy for ever, is seen where
//! they are driven ([`crate::world`]).

use std::cell::RefCell;

use super::{Checked, Event, Sight};

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Has all panics of this process noted, wherever they are caught.
pub fn watch() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
    }));
}

/// The panics so far.
pub fn panics() -> Vec<String> {
    PANICS.with_borrow(Clone::clone)
}

/// See the module's head.
pub fn assess(sight: &Sight, event: &Event) -> Checked {
    match event {
        Event::Look => match panics().first() {
            Some(words) => Err(format!("panic: {words}")),
            None => Ok(()),
        },
        Event::Installed { at, set } if set.keys.is_empty() => {
            Err(format!("server {at} is left without keys"))
        }
        Event::Offered(offer) => {
            let view = sight.servers.get(&offer.to);
            if view.is_some_and(|view| view.set.is_some()) {
                Ok(())
            } else {
                Err(format!("server {} takes handshakes without keys", offer.to))
            }
        }
        _ => Ok(()),
    }
}
