//! What is to happen, by time: the one heap of events. Of events at the same instant the one that was added first comes first.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use crate::time::At;

/// What is to happen.
#[derive(Debug)]
pub struct Agenda<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    added: u64,
}

#[derive(Debug)]
struct Entry<E> {
    place: (At, u64),
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place.cmp(&other.place)
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), added: 0 }
    }
}

impl<E> Agenda<E> {
    /// Has `event` happen at `at`.
    pub fn add(&mut self, at: At, event: E) {
        self.added += 1;
        self.heap.push(Reverse(Entry { place: (at, self.added), event }));
    }

    /// When the next event is.
    pub fn next_at(&self) -> Option<At> {
        self.heap.peek().map(|Reverse(entry)| entry.place.0)
    }

    /// Takes the next event out.
    pub fn pop(&mut self) -> Option<(At, E)> {
        self.heap.pop().map(|Reverse(entry)| (entry.place.0, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_in_which_they_were_added() {
        let mut agenda = Agenda::default();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (3, 'b')] {
            agenda.add(At(at), event);
        }
        let order: Vec<_> = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(order, [(At(1), 'a'), (At(3), 'b'), (At(5), 'c'), (At(5), 'd')]);
    }
}
