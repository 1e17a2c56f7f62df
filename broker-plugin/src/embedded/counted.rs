//! How many connections each device or backend has, where more than one client id is its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections that are counted, by whose they are.
#[derive(Debug, Default)]
pub(super) struct CountedConnections {
    /// Only of those who have some.
    by_holder: Mutex<HashMap<String, usize>>,
}

/// One connection that is counted. It no longer counts when this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    all: Arc<CountedConnections>,
    holder: String,
}

impl CountedConnections {
    /// Counts one more of a holder. `None` if the holder has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, holder: String, most: usize) -> Option<Counted> {
        let mut by_holder = self.by_holder();
        let count = by_holder.get(&holder).copied().unwrap_or_default();
        if count >= most {
            return None;
        }
        by_holder.insert(holder.clone(), count + 1);
        Some(Counted { all: self.clone(), holder })
    }

    fn by_holder(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.by_holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut by_holder = self.all.by_holder();
        if let Some(count) = by_holder.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                by_holder.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_has_so_many_and_nothing_is_kept_of_those_that_left() {
        let all = Arc::new(CountedConnections::default());
        let enter = |holder: &str| all.enter(holder.to_owned(), 2);
        let (first, second) = (enter("pump-17").unwrap(), enter("pump-17").unwrap());
        assert!(enter("pump-17").is_none());
        let other = enter("fan-1").unwrap();
        drop(first);
        let third = enter("pump-17").unwrap();
        assert!(enter("pump-17").is_none());
        drop((second, third, other));
        assert!(all.by_holder().is_empty());
    }
}
