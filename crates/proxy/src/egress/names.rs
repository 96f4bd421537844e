//! Addresses that stand for names inside a sandbox, so that a connection says which name it was asked for by.
//!
//! What always holds: an address stands for one name for as long as [`NAMES_MAX`] younger ones are not known, and for none for
//! long after that; a name is asked for anew before that happens, where whoever uses it heeds [`TTL_S`]. All lie in 198.18.0.0/15,
//! which is on no network (RFC 2544).

use std::{
    collections::{HashMap, VecDeque},
    net::Ipv4Addr,
};

use holm_domain::egress::name::HostName;

/// The most names that are known at once.
pub const NAMES_MAX: usize = 16_384;
/// How long an answer may be kept, in seconds.
pub const TTL_S: u32 = 30;

const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
/// How many addresses are given out before the first is given out again: 198.18.0.1 to 198.19.255.254.
const ADDRESSES: u64 = (1 << 17) - 2;

/// Which address stands for which name.
#[derive(Debug, Default)]
pub struct Names {
    /// The newest number of each name.
    numbers: HashMap<HostName, u64>,
    /// Names by their numbers, without a gap.
    known: VecDeque<HostName>,
    /// The number of the first of them.
    first: u64,
}

impl Names {
    /// The address that stands for `name`. One that is half forgotten is given out anew.
    pub fn address_of(&mut self, name: &HostName) -> Ipv4Addr {
        let half = self.first + (self.known.len().saturating_sub(NAMES_MAX / 2)) as u64;
        let known = self.numbers.get(name).copied().filter(|number| *number >= half);
        address(known.unwrap_or_else(|| self.add(name.clone())))
    }

    /// The name for which `address` stands.
    pub fn name_of(&self, address: Ipv4Addr) -> Option<&HostName> {
        let place = u64::from(u32::from(address).checked_sub(FIRST)?);
        // The one number of that place among those that are known, if any is.
        let ahead = (place + ADDRESSES - self.first % ADDRESSES) % ADDRESSES;
        self.known.get(usize::try_from(ahead).ok()?).filter(|_| place < ADDRESSES)
    }

    fn add(&mut self, name: HostName) -> u64 {
        if self.known.len() >= NAMES_MAX
            && let Some(oldest) = self.known.pop_front()
        {
            if self.numbers.get(&oldest) == Some(&self.first) {
                self.numbers.remove(&oldest);
            }
            self.first += 1;
        }
        let number = self.first + self.known.len() as u64;
        self.numbers.insert(name.clone(), number);
        self.known.push_back(name);
        number
    }
}

/// Whether `address` is one that may stand for a name.
pub fn is_synthetic(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [198, 18 | 19, ..])
}

fn address(number: u64) -> Ipv4Addr {
    // Less than 2^17.
    Ipv4Addr::from(FIRST + (number % ADDRESSES) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> HostName {
        HostName::from_text(&format!("n{number}.example.org")).unwrap()
    }

    #[test]
    fn an_address_stands_for_the_name_it_was_given_out_for() {
        let mut names = Names::default();
        let (one, other) = (names.address_of(&name(1)), names.address_of(&name(2)));
        assert_eq!((one, other), ("198.18.0.1".parse().unwrap(), "198.18.0.2".parse().unwrap()));
        assert_eq!(names.address_of(&name(1)), one);
        assert_eq!((names.name_of(one), names.name_of(other)), (Some(&name(1)), Some(&name(2))));
        for unknown in ["198.18.0.0", "198.18.0.3", "198.19.255.255", "198.20.0.1", "127.0.0.1", "0.0.0.0"] {
            assert_eq!(names.name_of(unknown.parse().unwrap()), None, "{unknown}");
        }
    }

    #[test]
    fn what_is_forgotten_stands_for_nothing_and_what_is_used_is_not_forgotten() {
        let mut names = Names::default();
        let first = names.address_of(&name(0));
        let mut used = names.address_of(&name(1));
        for number in 2..200_000 {
            let address = names.address_of(&name(number));
            assert!(is_synthetic(address));
            assert_eq!(names.name_of(address), Some(&name(number)));
            if number % 100 == 0 {
                assert_eq!(names.name_of(used), Some(&name(1)), "{number}");
                used = names.address_of(&name(1));
            }
            if (NAMES_MAX + 1_000..100_000).contains(&number) {
                assert_eq!(names.name_of(first), None, "{number}");
            }
            assert!(names.known.len() <= NAMES_MAX && names.numbers.len() <= NAMES_MAX);
        }
    }
}
