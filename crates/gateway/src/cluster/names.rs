//! What a room is called in Redis.
//!
//! One tenant shares its rooms with Node servers and emitters, under the names of the contract:
//! `user:<id>`, and every chat room, exam and study group by its own id. All other rooms keep the
//! names they have inside a node, which hold a character that no id may contain.

use carillon_domain::{RoomId, TenantId, UserId, contract::Address};
use carillon_redis_adapter::wire::Selection;

use crate::fanout::{Room, chat_room, connection_room, tenant_room, user_room};

const USER: &str = "user:";

/// The rooms of one node, and those of the cluster.
pub struct Names {
    shared: TenantId,
}

impl Names {
    pub const fn new(shared: TenantId) -> Self {
        Self { shared }
    }

    /// The tenant whose rooms others may name.
    pub const fn shared_tenant(&self) -> &TenantId {
        &self.shared
    }

    /// Whom an event is for; `None` when it is for sockets of this node only.
    pub fn selection(&self, tenant: &TenantId, to: &Address) -> Option<Selection> {
        let room = |room: &RoomId| self.name(tenant, chat_room(tenant, room), room.as_str());
        let user =
            |user: &UserId| self.name(tenant, user_room(tenant, user), &format!("{USER}{user}"));
        let (rooms, except) = match to {
            // Every node shows its own sockets the boards they look at.
            Address::Caller | Address::Lookers(_) | Address::Bystanders => return None,
            Address::User(to) => (vec![user(to)], Vec::new()),
            Address::Room(to) | Address::RoomWith(to, _) | Address::RoomWithout(to, _) => {
                (vec![room(to)], Vec::new())
            }
            Address::Others(to, about) => (vec![room(to)], vec![user(about)]),
            Address::Around(about, to) => {
                (std::iter::once(user(about)).chain(to.iter().map(room)).collect(), Vec::new())
            }
            Address::Tenant if *tenant == self.shared => (Vec::new(), Vec::new()),
            Address::Tenant => (vec![tenant_room(tenant).into()], Vec::new()),
        };
        Some(Selection { rooms, except })
    }

    fn name(&self, tenant: &TenantId, internal: Room, shared: &str) -> String {
        if *tenant == self.shared { shared.to_owned() } else { internal.into() }
    }

    /// A room of this node as others name it; `None` for those that are nobody else's business.
    pub fn shown(&self, room: &str) -> Option<String> {
        let mut parts = room.splitn(3, '\0');
        let (kind, tenant, rest) = (parts.next()?, parts.next()?, parts.next());
        match (kind, rest) {
            ("s", None) => Some(tenant.to_owned()),
            ("u", Some(user)) if tenant == self.shared.as_str() => Some(format!("{USER}{user}")),
            ("r", Some(room)) if tenant == self.shared.as_str() => Some(room.to_owned()),
            _ => None,
        }
    }

    /// The rooms of this node that a name from elsewhere stands for.
    fn meant<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Room> + 'a {
        let user = name.strip_prefix(USER).and_then(|id| UserId::new(id).ok());
        let user = user.map(|user| user_room(&self.shared, &user));
        let room = RoomId::new(name).ok().map(|room| chat_room(&self.shared, &room));
        let own = (!name.contains('\0')).then(|| connection_room(name));
        user.into_iter().chain(room).chain(own)
    }

    /// Who is meant elsewhere, as rooms of this node: those that are, and those that are not.
    pub fn rooms(&self, of: &Selection) -> (Vec<Room>, Vec<Room>) {
        let all = |names: &[String]| names.iter().flat_map(|name| self.meant(name)).collect();
        let rooms =
            if super::is_to_all(of) { vec![tenant_room(&self.shared)] } else { all(&of.rooms) };
        (rooms, all(&of.except))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_has_the_names_of_the_contract_and_the_others_their_own() {
        let (shared, other) = (TenantId::new("campus").unwrap(), TenantId::new("other").unwrap());
        let names = Names::new(shared.clone());
        let (ana, algebra) = (UserId::new("ana").unwrap(), RoomId::new("algebra").unwrap());
        let to = Address::Others(algebra.clone(), ana.clone());
        let selection = names.selection(&shared, &to).unwrap();
        assert_eq!(
            (selection.rooms, selection.except),
            (vec!["algebra".into()], vec!["user:ana".into()])
        );
        let selection = names.selection(&other, &to).unwrap();
        assert_eq!(selection.rooms, ["r\0other\0algebra"]);
        assert_eq!(names.selection(&shared, &Address::Tenant), Some(Selection::default()));
        assert_eq!(names.selection(&other, &Address::Tenant).unwrap().rooms, ["t\0other"]);
        assert_eq!(names.selection(&shared, &Address::Caller), None);
        for (room, name) in [
            (user_room(&shared, &ana), Some("user:ana")),
            (chat_room(&shared, &algebra), Some("algebra")),
            (chat_room(&other, &algebra), None),
            (tenant_room(&shared), None),
            (connection_room("abc"), Some("abc")),
        ] {
            assert_eq!(names.shown(&room).as_deref(), name, "{room:?}");
        }
    }

    #[test]
    fn a_name_from_elsewhere_reaches_the_shared_tenant_and_nobody_else() {
        let names = Names::new(TenantId::new("campus").unwrap());
        let of = |rooms: &[&str]| Selection {
            rooms: rooms.iter().map(|room| (*room).to_owned()).collect(),
            except: Vec::new(),
        };
        assert_eq!(names.rooms(&of(&[])).0, ["t\0campus"]);
        let meant = names.rooms(&of(&["user:ana"])).0;
        assert!(meant.contains(&Room::from("u\0campus\0ana")));
        assert!(names.rooms(&of(&["r\0other\0algebra", "t\0other"])).0.is_empty());
    }
}
