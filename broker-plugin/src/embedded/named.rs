//! How many named connections each device has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use assay_wire::DeviceId;

/// The named connections of all devices, up to a number for each device.
#[derive(Debug)]
pub(super) struct NamedConnections {
    most: usize,
    /// Only of devices that have some.
    by_device: Mutex<HashMap<DeviceId, usize>>,
}

/// One named connection. It no longer counts when this is dropped.
#[derive(Debug)]
pub(super) struct Named {
    all: Arc<NamedConnections>,
    device: DeviceId,
}

impl NamedConnections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, by_device: Mutex::default() })
    }

    /// Counts one more of a device. `None` if the device has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, device: &DeviceId) -> Option<Named> {
        let mut by_device = self.by_device();
        let count = by_device.get(device).copied().unwrap_or_default();
        if count >= self.most {
            return None;
        }
        by_device.insert(device.clone(), count + 1);
        Some(Named { all: self.clone(), device: device.clone() })
    }

    fn by_device(&self) -> MutexGuard<'_, HashMap<DeviceId, usize>> {
        self.by_device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let mut by_device = self.all.by_device();
        if let Some(count) = by_device.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                by_device.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_so_many_and_nothing_is_kept_of_those_that_left() {
        let all = NamedConnections::new(2);
        let (pump, fan) = ("pump-17".parse().unwrap(), "fan-1".parse().unwrap());
        let (first, second) = (all.enter(&pump).unwrap(), all.enter(&pump).unwrap());
        assert!(all.enter(&pump).is_none());
        let other = all.enter(&fan).unwrap();
        drop(first);
        let third = all.enter(&pump).unwrap();
        assert!(all.enter(&pump).is_none());
        drop((second, third, other));
        assert!(all.by_device().is_empty());
    }
}
