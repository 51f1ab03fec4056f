//! Ctrl-C and the like. While a check runs, the first one ends it cleanly, with a report of what was found; otherwise, and the
//! second time, this process ends at once. Either way the commands that it asked end, too: a terminal's signal does not reach them.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, complain};
use crate::subjects::process::end_all;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static ENDS_CLEANLY: AtomicBool = AtomicBool::new(false);

/// Ends what this process started when it is told to end. Errors: the system has no such signals.
pub fn end_with_this_process() -> Result<(), Failure> {
    static INSTALLED: Once = Once::new();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    INSTALLED.call_once(|| {
        std::thread::spawn(move || {
            for signal in signals.forever() {
                let cleanly = signal != SIGHUP && ENDS_CLEANLY.load(Ordering::SeqCst);
                if !cleanly || INTERRUPTED.swap(true, Ordering::SeqCst) {
                    end_all();
                    std::process::exit(128 + signal);
                }
                complain(
                    "doublecheck: interrupted; it ends after the answer it waits for. Again: it ends at once",
                );
            }
        });
    });
    Ok(())
}

/// From now on the first signal only sets the flag that is returned. Errors: those of [`end_with_this_process`].
pub fn end_cleanly() -> Result<&'static AtomicBool, Failure> {
    end_with_this_process()?;
    ENDS_CLEANLY.store(true, Ordering::SeqCst);
    Ok(&INTERRUPTED)
}
