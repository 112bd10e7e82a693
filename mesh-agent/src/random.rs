//! Random numbers where nobody gains by guessing them: choices by weight, pauses, request ids.
//!
//! In: nothing. Out: numbers of a small generator of the thread's own, seeded by the system's. Never: keys, or anything secret.

use std::cell::RefCell;

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

thread_local! {
    static GENERATOR: RefCell<SmallRng> = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
}

/// The next one.
pub fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    GENERATOR.with_borrow_mut(Rng::random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_do_not_repeat_each_other() {
        let other = std::thread::spawn(random::<u128>).join().unwrap();
        assert_ne!(random::<u128>(), other);
        assert_ne!(random::<u128>(), random::<u128>());
    }
}
