//! The one lock that is used here: std's, or shuttle's, which tries every order of those who take it.

#[cfg(not(feature = "shuttle"))]
use std::sync as imp;

#[cfg(feature = "shuttle")]
use shuttle::sync as imp;

use std::sync::PoisonError;

pub(crate) use imp::MutexGuard;

/// A lock that a panic does not poison: what it guards is whole whenever it is let go.
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How keys are hashed: by a secret of this process, for clients choose the keys.
#[cfg(not(feature = "shuttle"))]
pub(crate) type Hasher = std::hash::RandomState;

/// A schedule can only be run again where nothing is random.
#[cfg(feature = "shuttle")]
pub(crate) type Hasher = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;
