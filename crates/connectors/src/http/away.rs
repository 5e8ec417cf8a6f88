//! Where a server may send us: to the public network, and not into this machine or the one around it.
//!
//! A program's author names a server and so vouches for it, wherever it stands.
//! Where its answer sends us (`Location`), nobody has vouched for: such an answer
//! could make us read what only this machine may ask, as the addresses at which
//! clouds keep a machine's credentials.
//!
//! Invariant: a name is looked up once, and connected to is one of the addresses
//! that were looked at. Called by [`super`] after a redirect to another host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whether an address is one of the public network.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocols = a == 192 && b == 0 && c == 0;
    let benchmarks = a == 198 && (b == 18 || b == 19);
    // 0/8 is this machine; from 240 on nothing is given out.
    !(a == 0
        || a >= 240
        || shared
        || protocols
        || benchmarks
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let within = |high: u16, low: u16| {
        let ([p, q], [r, s]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(p, q, r, s))
    };
    match (a, b) {
        // Addresses of version 4 in other clothes: translated, and 6to4.
        (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => within(g, h),
        (0x2002, _) => within(b, c),
        // Teredo, documentation.
        (0x2001, 0 | 0xdb8) => false,
        // What is given out to networks.
        _ => a & 0xe000 == 0x2000,
    }
}

/// Those of a name's addresses that may be connected to.
///
/// # Errors
/// When there is none, or one that is not public: a name that is both is a trick.
pub(super) fn public_ones(host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, String> {
    if found.is_empty() {
        return Err(format!("{host} has no address"));
    }
    if found.iter().any(|address| !is_public(address.ip())) {
        return Err(inside(host));
    }
    Ok(found)
}

/// The refusal of a place that is not public.
pub(super) fn inside(host: &str) -> String {
    format!(
        "the server sent us to {host}, which is this machine or in the network around it: set option `url` to it if it is right"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_this_machine_or_around_it_is_not_public() {
        for inside in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.192",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2001:db8::1",
            "2001::1",
            "64:ff9b:1::1",
            "100::1",
            "4000::1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for public in [
            "1.1.1.1",
            "93.184.215.14",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "169.253.0.1",
            "2606:4700:4700::1111",
            "2a00:1450:4001::1",
            "64:ff9b::101:101",
            "2002:101:101::1",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_name_with_one_address_inside_is_refused() {
        let of = |addresses: &[&str]| {
            let found = addresses.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 443)).collect();
            public_ones("a.example", found)
        };
        assert_eq!(of(&["1.1.1.1", "2606:4700::1"]).unwrap().len(), 2);
        for bad in [&["1.1.1.1", "169.254.169.254"][..], &["127.0.0.1"], &["fd00::1", "1.1.1.1"]] {
            assert!(of(bad).unwrap_err().contains("set option `url`"), "{bad:?}");
        }
        assert!(of(&[]).unwrap_err().contains("no address"));
    }
}
