//! Whether a background thread does its work, for `/readyz` and `/metrics`.
//!
//! The thread tells it; `app` asks. A thread that panics or returns is noticed by its [`Ending`].

use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Working,
    Failing(String),
    Ended,
}

/// What a thread last said of itself; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Condition(Arc<Mutex<State>>);

impl Condition {
    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The last step was done.
    pub fn works(&self) {
        self.set(State::Working);
    }

    /// The last step failed and will be tried again.
    pub fn fails(&self, why: String) {
        self.set(State::Failing(why));
    }

    /// Held by the thread: dropped at its end, however it ends.
    #[must_use]
    pub fn until_end(&self) -> Ending {
        Ending(self.clone())
    }

    /// Whether the work is done.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Working => Ok(()),
            State::Failing(why) => Err(format!("failing, will retry: {why}")),
            State::Ended => Err("its thread ended".to_owned()),
        }
    }
}

/// Marks the condition as ended when dropped.
#[derive(Debug)]
pub struct Ending(Condition);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.set(State::Ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_failures_and_an_end_by_panic() {
        let condition = Condition::default();
        assert_eq!(condition.check(), Ok(()));
        condition.fails("disk full".into());
        assert_eq!(condition.check(), Err("failing, will retry: disk full".into()));
        condition.works();
        assert_eq!(condition.check(), Ok(()));
        let ending = condition.until_end();
        let thread = std::thread::spawn(move || {
            let _ending = ending;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert_eq!(condition.check(), Err("its thread ended".into()));
    }
}
