//! Who is let in when more knock than there is room for.
//!
//! Every connection is accepted at once, so that nobody waits in the kernel behind a flood, and
//! most of a flood is closed again at once. Each source has its share of the handshakes that may be
//! going on, and makes room for its own newer ones only. For those that have shown a good
//! certificate from their address before, or whose address is in the configuration, room is kept
//! that no stranger gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How many of what there is room for, on one listening socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Connections of all, once they have said who they are.
    pub(crate) open: usize,
    /// Of those, of one source; over TLS, of one certificate.
    pub(crate) open_each: usize,
    /// Connections that have not yet, of all who are not known.
    pub(crate) handshakes: usize,
    /// Of those, of one source.
    pub(crate) handshakes_each: usize,
    /// Connections that have not yet, of those who are known: besides all others.
    pub(crate) handshakes_known: usize,
}

/// How many sources are known at once. The one that came in longest ago is forgotten.
const KNOWN: usize = 64;

/// Where connections come from: an address, or the network that one subscriber has of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Source(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from(network))
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// A connection.
#[derive(Debug)]
struct Guest {
    source: Source,
    known: bool,
    /// Ends a handshake. `None` once that is over.
    crowd_out: Option<oneshot::Sender<()>>,
    /// Who it is, once that is said.
    name: Option<String>,
}

#[derive(Debug)]
struct Inside {
    room: Room,
    /// By the order in which they came.
    guests: BTreeMap<u64, Guest>,
    next: u64,
    /// From the configuration.
    configured: BTreeSet<Source>,
    /// Those with a good certificate, and which of them came in when.
    seen: BTreeMap<Source, u64>,
}

/// Everybody who is inside one listening socket. A clone is the same.
#[derive(Debug, Clone)]
pub(crate) struct Admission(Arc<Mutex<Inside>>);

/// The right of one connection to be there, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    number: u64,
    admission: Admission,
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// For anybody.
    #[error("too many connections at once")]
    All,
    /// For this one, who has as many as one may have.
    #[error("too many connections from one source at once")]
    Each,
}

impl Admission {
    /// An empty house.
    pub(crate) fn new(room: Room, configured: impl IntoIterator<Item = IpAddr>) -> Self {
        Self(Arc::new(Mutex::new(Inside {
            room,
            guests: BTreeMap::new(),
            next: 0,
            configured: configured.into_iter().map(Source::from).collect(),
            seen: BTreeMap::new(),
        })))
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets in a connection that begins its handshake; another that has not ended its own may have
    /// to go for it, and is told by its receiver.
    pub(crate) fn greet(&self, address: IpAddr) -> (Ticket, oneshot::Receiver<()>) {
        let (crowd_out, crowded_out) = oneshot::channel();
        let mut inside = self.inside();
        let source = Source::from(address);
        let known = inside.knows(source);
        inside.make_room(source, known);
        let number = inside.admit(Guest {
            source,
            known,
            crowd_out: Some(crowd_out),
            name: None,
        });
        let admission = self.clone();
        (Ticket { number, admission }, crowded_out)
    }

    /// Lets in a connection that has no handshake.
    pub(crate) fn admit(&self, address: IpAddr) -> Result<Ticket, Full> {
        let mut inside = self.inside();
        let source = Source::from(address);
        let name = source.0.to_string();
        inside.check_open(&name)?;
        let number = inside.admit(Guest {
            source,
            known: false,
            crowd_out: None,
            name: Some(name),
        });
        let admission = self.clone();
        Ok(Ticket { number, admission })
    }
}

impl Ticket {
    /// The handshake is over, and showed a good certificate.
    pub(crate) fn greeted(&self, name: &str) -> Result<(), Full> {
        let mut inside = self.admission.inside();
        inside.check_open(name)?;
        let number = self.number;
        // It may have had to go just now.
        let guest = inside.guests.get_mut(&number).ok_or(Full::All)?;
        guest.name = Some(name.to_owned());
        guest.crowd_out = None;
        let source = guest.source;
        inside.remember(source, number);
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.inside().guests.remove(&self.number);
    }
}

impl Inside {
    fn knows(&self, source: Source) -> bool {
        self.configured.contains(&source) || self.seen.contains_key(&source)
    }

    fn admit(&mut self, guest: Guest) -> u64 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.guests.insert(number, guest);
        number
    }

    /// Whether one more of this name may stay.
    fn check_open(&self, name: &str) -> Result<(), Full> {
        let open = self.guests.values().filter_map(|guest| guest.name.as_ref());
        let (mut all, mut own) = (0, 0);
        for each in open {
            all += 1;
            own += usize::from(each == name);
        }
        if own >= self.room.open_each {
            Err(Full::Each)
        } else if all >= self.room.open {
            Err(Full::All)
        } else {
            Ok(())
        }
    }

    /// The handshakes that are going on, in the order in which they came.
    fn handshakes(&self) -> impl Iterator<Item = (u64, &Guest)> {
        let guests = self.guests.iter().map(|(number, guest)| (*number, guest));
        guests.filter(|(_, guest)| guest.crowd_out.is_some())
    }

    /// Sees to it that one more handshake can begin.
    fn make_room(&mut self, source: Source, known: bool) {
        let own = |guest: &Guest| guest.source == source;
        let same = |guest: &Guest| guest.known == known;
        let (each, all) = if known {
            // One of them has at most half of what is kept for all of them.
            (self.room.handshakes_known / 2, self.room.handshakes_known)
        } else {
            (self.room.handshakes_each, self.room.handshakes)
        };
        let count = |of: &dyn Fn(&Guest) -> bool| {
            let handshakes = self.handshakes();
            handshakes.filter(|(_, guest)| of(guest)).count()
        };
        let goes = if count(&own) >= each {
            Some(source)
        } else if count(&same) >= all {
            self.most_of(known)
        } else {
            None
        };
        let Some(goes) = goes else { return };
        let oldest = self.handshakes().find(|(_, guest)| guest.source == goes);
        if let Some((number, _)) = oldest {
            // Its ticket goes when its task hears of it; its place is free now.
            if let Some(guest) = self.guests.remove(&number)
                && let Some(crowd_out) = guest.crowd_out
            {
                // A handshake that has just ended has nobody who listens.
                crowd_out.send(()).unwrap_or_default();
            }
        }
    }

    /// The source that has the most handshakes; of several the one whose oldest is the oldest.
    fn most_of(&self, known: bool) -> Option<Source> {
        let mut counts: BTreeMap<Source, (usize, std::cmp::Reverse<u64>)> = BTreeMap::new();
        for (number, guest) in self.handshakes().filter(|(_, guest)| guest.known == known) {
            let count = counts
                .entry(guest.source)
                .or_insert((0, std::cmp::Reverse(number)));
            count.0 += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(source, _)| source)
    }

    fn remember(&mut self, source: Source, number: u64) {
        self.seen.insert(source, number);
        if self.seen.len() > KNOWN {
            let oldest = self.seen.iter().min_by_key(|(_, number)| **number);
            if let Some(oldest) = oldest.map(|(source, _)| *source) {
                self.seen.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        open: 6,
        open_each: 3,
        handshakes: 8,
        handshakes_each: 4,
        handshakes_known: 4,
    };

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    type Greeted = (Ticket, oneshot::Receiver<()>);

    fn is_out(greeted: &mut Greeted) -> bool {
        greeted.1.try_recv().is_ok()
    }

    #[test]
    fn a_flood_from_one_source_crowds_out_nobody_but_itself() {
        let admission = Admission::new(ROOM, []);
        let mut other = admission.greet(ip(1));
        let mut flood: Vec<Greeted> = (0..100).map(|_| admission.greet(ip(66))).collect();
        assert!(!is_out(&mut other));
        let left = flood
            .iter_mut()
            .filter_map(|each| (!is_out(each)).then_some(()));
        assert_eq!(left.count(), ROOM.handshakes_each);
        assert_eq!(other.0.greeted("alice"), Ok(()));
    }

    #[test]
    fn a_flood_from_many_sources_crowds_out_those_that_have_the_most() {
        let admission = Admission::new(ROOM, []);
        let mut one = admission.greet(ip(1));
        let mut flood: Vec<Greeted> = (0..40).map(|n| admission.greet(ip(100 + n % 4))).collect();
        assert!(!is_out(&mut one), "it has a single one");
        let left = flood
            .iter_mut()
            .filter_map(|each| (!is_out(each)).then_some(()));
        assert_eq!(left.count() + 1, ROOM.handshakes);
    }

    #[test]
    fn for_those_who_are_known_room_is_kept() {
        let admission = Admission::new(ROOM, [ip(7)]);
        // Every stranger has one: nobody has the most, and the oldest go.
        let mut known = admission.greet(ip(7));
        let mut stranger = admission.greet(ip(8));
        let seen = admission.greet(ip(9));
        assert_eq!(seen.0.greeted("gcp"), Ok(()));
        drop(seen);
        let mut back = admission.greet(ip(9));
        let _flood: Vec<Greeted> = (100..200).map(|n| admission.greet(ip(n))).collect();
        assert!(is_out(&mut stranger));
        assert!(!is_out(&mut known) && !is_out(&mut back));
        // Nor do they take it from each other.
        let _greedy: Vec<Greeted> = (0..50).map(|_| admission.greet(ip(7))).collect();
        assert!(!is_out(&mut back));
    }

    #[test]
    fn nobody_has_all_the_connections_and_what_is_dropped_is_free_again() {
        let admission = Admission::new(ROOM, []);
        let mut alice: Vec<Ticket> = (0..3)
            .map(|_| {
                let (ticket, _) = admission.greet(ip(1));
                ticket.greeted("alice").unwrap();
                ticket
            })
            .collect();
        let fourth = admission.greet(ip(2)).0;
        assert_eq!(fourth.greeted("alice"), Err(Full::Each));
        for _ in 0..3 {
            let (ticket, _) = admission.greet(ip(3));
            ticket.greeted("bob").unwrap();
            alice.push(ticket);
        }
        let carol = admission.greet(ip(4)).0;
        assert_eq!(carol.greeted("carol"), Err(Full::All));
        alice.clear();
        assert_eq!(carol.greeted("carol"), Ok(()));
        let plain = Admission::new(ROOM, []);
        let held: Vec<_> = (0..3).map(|_| plain.admit(ip(1)).unwrap()).collect();
        assert_eq!(plain.admit(ip(1)).unwrap_err(), Full::Each);
        assert!(plain.admit(ip(2)).is_ok());
        drop(held);
        assert!(plain.admit(ip(1)).is_ok());
    }

    #[test]
    fn few_sources_are_remembered_and_an_ipv6_network_is_one() {
        let admission = Admission::new(ROOM, []);
        for last in 0..=255 {
            let (ticket, _) = admission.greet(ip(last));
            ticket.greeted("x").unwrap();
        }
        assert_eq!(admission.inside().seen.len(), KNOWN);
        assert!(admission.inside().knows(Source::from(ip(255))));
        let v6 = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:1"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:10.0.0.1"), Source(ip(1)));
    }
}
