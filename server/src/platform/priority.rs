//! Who waits for whom where threads outnumber cores.
//!
//! Threads that work in the background (the store's writer and readers, the rules) call [`background`] once: their
//! commits take milliseconds of a core, and a PUBACK must not stand behind them. They get less only while somebody
//! else wants the core.

/// The nice value of background threads: about a third of the weight of the others.
const BACKGROUND_NICE: i32 = 5;

/// Lets the calling thread yield to the gateway and the log. On Linux a priority belongs to a thread.
pub fn background() {
    // Where the system refuses, all threads are equal, as they were.
    let yielded = rustix::process::getpriority_process(None)
        .and_then(|nice| rustix::process::setpriority_process(None, nice.max(BACKGROUND_NICE)));
    if let Err(error) = yielded {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_yields() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let there = std::thread::spawn(move || {
            background();
            nice()
        });
        assert_eq!(there.join().unwrap(), before.max(BACKGROUND_NICE));
        assert_eq!(nice(), before);
    }
}
