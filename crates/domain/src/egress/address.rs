//! Which addresses a sandbox may be connected to at all.
//!
//! What always holds: an address is judged by what it leads to, so one that embeds another is that other one; and what cannot be
//! on the public internet is reached only where the operator listed it, some of it not even then. The tables are those of
//! the IANA special-purpose registries (RFC 6890, RFC 8190), and of the metadata services of clouds, which lie partly outside of
//! them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why an address is not one of the public internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// What the addresses of its range are for.
    pub purpose: &'static str,
    /// Whether an operator may list it as a place to go to.
    pub is_listable: bool,
}

/// A range, what it is for, and whether an operator may list addresses of it.
type Range<N> = (N, &'static str, bool);

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8, purpose: &'static str, is_listable: bool) -> Range<Ipv4Net> {
    (Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix), purpose, is_listable)
}

const fn v6(address: [u16; 8], prefix: u8, purpose: &'static str, is_listable: bool) -> Range<Ipv6Net> {
    let [a, b, c, d, e, f, g, h] = address;
    (Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix), purpose, is_listable)
}

/// The first range that contains an address says what it is.
const V4: &[Range<Ipv4Net>] = &[
    v4(100, 100, 100, 200, 32, "a cloud's metadata service", false),
    v4(168, 63, 129, 16, 32, "a cloud's metadata service", false),
    v4(192, 0, 0, 192, 32, "a cloud's metadata service", false),
    v4(169, 254, 0, 0, 16, "link-local, and metadata services", false),
    v4(0, 0, 0, 0, 8, "this host on this network", false),
    v4(127, 0, 0, 0, 8, "loopback", true),
    v4(10, 0, 0, 0, 8, "private use", true),
    v4(172, 16, 0, 0, 12, "private use", true),
    v4(192, 168, 0, 0, 16, "private use", true),
    v4(100, 64, 0, 0, 10, "shared by carriers", true),
    v4(192, 0, 0, 0, 24, "protocol assignments", false),
    v4(192, 0, 2, 0, 24, "documentation", false),
    v4(198, 51, 100, 0, 24, "documentation", false),
    v4(203, 0, 113, 0, 24, "documentation", false),
    v4(192, 88, 99, 0, 24, "6to4 relays", false),
    v4(198, 18, 0, 0, 15, "benchmarks, and names inside a sandbox", false),
    v4(224, 0, 0, 0, 4, "multicast", false),
    v4(240, 0, 0, 0, 4, "reserved", false),
];

const V6: &[Range<Ipv6Net>] = &[
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, "a cloud's metadata service", false),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, "a cloud's metadata service", false),
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128, "a cloud's metadata service", false),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128, "a cloud's metadata service", false),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, "no address", false),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback", true),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, "IPv4-compatible", false),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "translation of a network's own", false),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "discarded", false),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "protocol assignments, and Teredo", false),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation", false),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation", false),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4", false),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "segment routing", false),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "unique local", true),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local", false),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site-local", false),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast", false),
];

/// All of the public internet by IPv6 (RFC 4291, section 2.4, as it is assigned now).
const GLOBAL_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The prefix by which IPv4 is reached from networks without it (RFC 6052).
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// What a connection to an address leads to: that address, or the IPv4 address that it stands for, mapped (RFC 4291, section
/// 2.5.5.2) or translated (RFC 6052).
pub fn leads_to(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if NAT64.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        canonical => canonical,
    }
}

/// Why an address is not one of the public internet; nothing if it is.
pub fn special(address: IpAddr) -> Option<Special> {
    let found = match leads_to(address) {
        IpAddr::V4(v4) => V4.iter().find(|(range, ..)| range.contains(&v4)).map(|(_, why, listable)| (*why, *listable)),
        IpAddr::V6(v6) => V6
            .iter()
            .find(|(range, ..)| range.contains(&v6))
            .map(|(_, why, listable)| (*why, *listable))
            .or((!GLOBAL_V6.contains(&v6)).then_some(("not assigned", false))),
    };
    found.map(|(purpose, is_listable)| Special { purpose, is_listable })
}

/// Whether a connection may go to `address`: to one of the public internet, and to one that an operator listed among `listed`
/// where that is possible.
pub fn may_reach(address: IpAddr, listed: &[IpNet]) -> Result<(), Special> {
    let Some(special) = special(address) else { return Ok(()) };
    let address = leads_to(address);
    let is_listed = listed.iter().any(|range| range.contains(&address));
    if special.is_listable && is_listed { Ok(()) } else { Err(special) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose(text: &str) -> Option<&'static str> {
        special(text.parse().unwrap()).map(|special| special.purpose)
    }

    #[test]
    fn what_is_on_the_public_internet_is_not_special() {
        for public in
            ["1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "198.17.0.1"]
        {
            assert_eq!(purpose(public), None, "{public}");
        }
        for public in ["2606:4700::1111", "2a00:1450::1", "2001:200::1", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"] {
            assert_eq!(purpose(public), None, "{public}");
        }
    }

    #[test]
    fn what_is_not_is_told_by_its_range() {
        let cases = [
            ("0.0.0.0", "this host on this network"),
            ("10.0.0.1", "private use"),
            ("100.64.0.1", "shared by carriers"),
            ("100.100.100.200", "a cloud's metadata service"),
            ("127.255.255.254", "loopback"),
            ("169.254.169.254", "link-local, and metadata services"),
            ("168.63.129.16", "a cloud's metadata service"),
            ("172.31.255.255", "private use"),
            ("192.0.0.192", "a cloud's metadata service"),
            ("192.0.0.1", "protocol assignments"),
            ("192.0.2.1", "documentation"),
            ("192.88.99.1", "6to4 relays"),
            ("192.168.0.1", "private use"),
            ("198.19.255.255", "benchmarks, and names inside a sandbox"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "no address"),
            ("::1", "loopback"),
            ("::7f00:1", "IPv4-compatible"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:a9fe:a9fe", "link-local, and metadata services"),
            ("64:ff9b::10.0.0.1", "private use"),
            ("64:ff9b:1::1", "translation of a network's own"),
            ("100::1", "discarded"),
            ("2001::1", "protocol assignments, and Teredo"),
            ("2001:db8::1", "documentation"),
            ("2002:7f00:1::", "6to4"),
            ("fd00:ec2::254", "a cloud's metadata service"),
            ("fd20:ce::254", "a cloud's metadata service"),
            ("fd00:c1::a9fe:a9fe", "a cloud's metadata service"),
            ("fd00:42::42", "a cloud's metadata service"),
            ("fd12::1", "unique local"),
            ("fe80::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
            ("4000::1", "not assigned"),
        ];
        for (address, expected) in cases {
            assert_eq!(purpose(address), Some(expected), "{address}");
        }
    }

    #[test]
    fn an_operator_lists_what_is_private_and_no_metadata() {
        let listed = ["10.1.0.0/16", "169.254.0.0/16", "0.0.0.0/0", "fd00::/8"].map(|range| range.parse().unwrap());
        let may = |text: &str| may_reach(text.parse().unwrap(), &listed).is_ok();
        assert!(may("10.1.2.3") && may("::ffff:10.1.2.3") && may("fd12::1") && may("1.1.1.1"));
        assert!(!may("169.254.169.254") && !may("fd00:ec2::254") && !may("0.0.0.0") && !may("fe80::1"));
        assert!(may_reach("10.2.0.1".parse().unwrap(), &listed[..1]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn an_address_that_embeds_another_is_judged_as_that(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            let plain = special(v4.into());
            proptest::prop_assert_eq!(special(v4.to_ipv6_mapped().into()), plain);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let translated = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            proptest::prop_assert_eq!(special(translated.into()), plain);
        }
    }
}
