//! The line of links that wait for credit: first come, first served, each at most once.
//!
//! A link's own part is one number, what it asked for, which is changed under the line's lock; 0 says that it does not
//! wait. A link that ends leaves its place empty; when half of the places are empty they are swept, so each end
//! costs a constant. Limit: [`WAITING_MAX`] places.

use crate::gateway::link::{Link, lock};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// Places in the line: three times the connections that a gateway takes by default.
pub(crate) const WAITING_MAX: usize = 65_536;

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stood {
    /// At the end of the line; it was empty before.
    First,
    /// At the end of the line.
    Behind,
    /// It stood there already, now with this wish.
    Already,
    /// There is no place.
    Full,
}

#[derive(Default)]
struct Places {
    queue: VecDeque<Arc<Link>>,
    /// Those of the queue whose link left.
    empty: usize,
}

/// The line.
#[derive(Default)]
pub(crate) struct Line {
    places: Mutex<Places>,
}

impl Line {
    /// Puts a link at the end; `records` is 1 at least.
    pub(crate) fn ask(&self, link: &Arc<Link>, records: u32) -> Stood {
        let mut places = lock(&self.places);
        if link.credit_asked.load(Ordering::Relaxed) == 0 {
            if places.queue.len() >= WAITING_MAX {
                return Stood::Full;
            }
            places.queue.push_back(link.clone());
        } else {
            link.credit_asked.store(records.max(1), Ordering::Relaxed);
            return Stood::Already;
        }
        link.credit_asked.store(records.max(1), Ordering::Relaxed);
        if places.queue.len() - places.empty == 1 { Stood::First } else { Stood::Behind }
    }

    /// Takes the first that still waits, with its wish.
    pub(crate) fn next(&self) -> Option<(Arc<Link>, u32)> {
        let mut places = lock(&self.places);
        loop {
            let Some(link) = places.queue.pop_front() else {
                places.queue = VecDeque::new();
                return None;
            };
            match link.credit_asked.swap(0, Ordering::Relaxed) {
                0 => places.empty -= 1,
                // It is being closed: what it would get is gone with it.
                _ if link.close_asked().is_some() => {}
                records => return Some((link, records)),
            }
        }
    }

    /// A connection ended.
    pub(crate) fn leave(&self, link: &Link) {
        if link.credit_asked.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut places = lock(&self.places);
        if link.credit_asked.swap(0, Ordering::Relaxed) == 0 {
            return;
        }
        places.empty += 1;
        if places.empty * 2 > places.queue.len() {
            places.queue.retain(|waiting| waiting.credit_asked.load(Ordering::Relaxed) != 0);
            places.empty = 0;
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        let places = lock(&self.places);
        places.queue.len() - places.empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::reason::CloseReason;
    use crate::gateway::tests::link;

    fn links(count: usize) -> Vec<Arc<Link>> {
        (0..count).map(|at| link(&format!("d{at}"))).collect()
    }

    fn order(line: &Line) -> Vec<(String, u32)> {
        let next = || line.next().map(|(link, records)| (link.device().unwrap().to_owned(), records));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn first_come_first_served_and_each_once_with_its_newest_wish() {
        let (line, links) = (Line::default(), links(3));
        assert_eq!(line.ask(&links[1], 5), Stood::First);
        assert_eq!(line.ask(&links[0], 6), Stood::Behind);
        assert_eq!(line.ask(&links[1], 7), Stood::Already);
        assert_eq!(line.ask(&links[2], 8), Stood::Behind);
        assert_eq!(line.len(), 3);
        let expect = [("d1", 7), ("d0", 6), ("d2", 8)].map(|(name, records)| (name.to_owned(), records));
        assert_eq!(order(&line), expect);
        assert_eq!(line.ask(&links[1], 1), Stood::First, "who was served may come again");
        // Who comes again stands behind who was not served yet.
        assert_eq!(line.ask(&links[0], 1), Stood::Behind);
        assert_eq!(line.next().unwrap().0.device(), Some("d1"));
        assert_eq!(line.ask(&links[1], 1), Stood::Behind);
        assert_eq!(order(&line).len(), 2);
        assert_eq!(line.len(), 0);
    }

    #[test]
    fn who_left_or_is_being_closed_is_passed_over() {
        let (line, links) = (Line::default(), links(5));
        links.iter().for_each(|link| assert_ne!(line.ask(link, 1), Stood::Full));
        line.leave(&links[0]);
        line.leave(&links[0]);
        line.leave(&links[3]);
        links[2].close(CloseReason::Disabled);
        assert_eq!(line.len(), 3);
        assert_eq!(order(&line), [("d1".to_owned(), 1), ("d4".to_owned(), 1)]);
        // Its connection ends after its place was taken.
        line.leave(&links[2]);
        assert_eq!(line.len(), 0);
    }

    #[test]
    fn places_are_bounded_and_those_of_the_gone_come_free() {
        let (line, links) = (Line::default(), links(WAITING_MAX + 1));
        let late = &links[WAITING_MAX];
        links[..WAITING_MAX].iter().for_each(|link| assert_ne!(line.ask(link, 1), Stood::Full));
        assert_eq!(line.ask(late, 1), Stood::Full);
        assert_eq!(line.ask(&links[0], 2), Stood::Already, "who stands there may ask again");
        links[1..=WAITING_MAX / 2].iter().for_each(|link| line.leave(link));
        assert_eq!(line.ask(late, 1), Stood::Full, "not swept yet");
        line.leave(&links[WAITING_MAX - 1]);
        assert_eq!(lock(&line.places).queue.len(), WAITING_MAX / 2 - 1);
        assert_eq!(line.ask(late, 1), Stood::Behind);
        assert_eq!((line.len(), order(&line).len()), (WAITING_MAX / 2, WAITING_MAX / 2));
    }
}
