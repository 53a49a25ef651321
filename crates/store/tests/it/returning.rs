//! The rooms of those who come back: how long they are kept, and for whom.

use std::time::Duration;

use carillon_domain::{
    Caller, ConnectionId, Offset, RoomId,
    chat::{
        join_room::JoinRoom,
        leave_room::LeaveRoom,
        returning::{Change, Returning, SIBLINGS, take_over, write},
    },
    contract::Scope,
    dispatch::{Effect, Joined},
    ports::Store as _,
    presence::RETURN_WINDOW,
    recovery::{self, Claim, Reason, Session},
    session::{Ending, disconnected, settled},
};

use crate::world::{World, caller, tenant, user};

fn room(id: &str) -> RoomId {
    RoomId::new(id).unwrap()
}

/// A socket of Ana's.
fn socket(id: &str) -> Caller {
    let connection = ConnectionId::new(id).unwrap();
    Caller { connection, joined: Joined::default(), ..caller("t", "ana") }
}

async fn join(world: &World, socket: &Caller, rooms: &[&str]) {
    for id in rooms {
        world.ask(socket, &JoinRoom { room_id: room(id) }).await.unwrap();
        world.advance(Duration::from_millis(1));
    }
}

/// The rooms a socket is put into a moment after it has come.
async fn returns(world: &World, socket: &Caller) -> Vec<String> {
    write(&world.app).await.unwrap();
    let (effects, result) = settled(&world.app, socket, false).await;
    result.unwrap();
    let joins = effects.into_iter().filter_map(|effect| match effect {
        Effect::Join { room, .. } => Some(room.to_string()),
        _ => None,
    });
    joins.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_are_kept_for_two_minutes() {
    for world in World::each().await {
        world.provision(&["ana"]).await;
        for (waits, rooms) in [
            (Duration::ZERO, vec!["algebra", "biology"]),
            (Duration::from_secs(119), vec!["algebra", "biology"]),
            (Duration::from_secs(121), vec![]),
        ] {
            let lost = socket("lost");
            join(&world, &lost, &["chemistry", "algebra", "biology"]).await;
            world.ask(&lost, &LeaveRoom { room_id: room("chemistry") }).await.unwrap();
            disconnected(&world.app, &lost, Ending::Lost);
            world.advance(waits);
            assert_eq!(returns(&world, &socket("new")).await, rooms, "after {waits:?}");
            world.advance(RETURN_WINDOW + Duration::from_secs(1));
            let mut tx = world.store.begin(&tenant("t"), Scope::Rows).await.unwrap();
            tx.forget_rooms(world.app.clock.now().before(RETURN_WINDOW), 100).await.unwrap();
            tx.commit().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sockets_of_a_page_come_back_and_no_other_page() {
    for world in World::each().await {
        world.provision(&["ana", "ben"]).await;
        let lost = socket("lost");
        join(&world, &lost, &["algebra"]).await;
        assert!(returns(&world, &socket("other tab")).await.is_empty(), "nothing is lost yet");
        disconnected(&world.app, &lost, Ending::Lost);
        assert!(returns(&world, &caller("t", "ben")).await.is_empty(), "another user");
        assert!(returns(&world, &caller("elsewhere", "ana")).await.is_empty(), "another tenant");
        let exams = Caller { namespace: "/exam", ..socket("exam") };
        assert!(returns(&world, &exams).await.is_empty(), "another namespace");
        assert_eq!(returns(&world, &socket("first")).await, ["algebra"]);
        world.advance(Duration::from_secs(14));
        assert_eq!(returns(&world, &socket("second")).await, ["algebra"]);
        world.advance(Duration::from_secs(2));
        assert!(returns(&world, &socket("another page")).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_cut_begins_anew() {
    for world in World::each().await {
        world.provision(&["ana"]).await;
        let (lost, cut) = (socket("lost"), socket("cut"));
        for one in [&lost, &cut] {
            join(&world, one, &["algebra"]).await;
        }
        disconnected(&world.app, &lost, Ending::Lost);
        disconnected(&world.app, &cut, Ending::Cut);
        assert!(returns(&world, &socket("new")).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_a_run_that_crashed_were_lost_when_their_users_were_last_seen() {
    for mut world in World::each().await {
        world.provision(&["ana"]).await;
        for (away, rooms) in [(30, vec!["algebra"]), (300, vec![])] {
            join(&world, &socket(&format!("lost-{away}")), &["algebra"]).await;
            let mut tx = world.store.begin(&tenant("t"), Scope::Rows).await.unwrap();
            let now = world.app.clock.now();
            tx.note_seen(&tenant("t"), &[user("ana")], now).await.unwrap();
            tx.commit().await.unwrap();
            write(&world.app).await.unwrap();
            world.advance(Duration::from_secs(away));
            world.app.returning = Returning::new(format!("run {away}"));
            take_over(&world.app, &tenant("t")).await.unwrap();
            assert_eq!(returns(&world, &socket("new")).await, rooms, "after {away} s");
            world.advance(SIBLINGS + Duration::from_secs(1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_has_one_heir_and_stays_its_own() {
    for world in World::each().await {
        world.provision(&["ana"]).await;
        let (app, here) = (&world.app, world.app.returning.node().to_owned());
        let (t, ana) = (tenant("t"), user("ana"));
        let socket = socket("kept");
        let came = Change::Came {
            user: ana.clone(),
            namespace: "/",
            pid: recovery::digest("secret"),
            since: Offset(0),
        };
        app.returning.note(&socket, came);
        join(&world, &socket, &["algebra", "biology"]).await;
        world.ask(&socket, &LeaveRoom { room_id: room("biology") }).await.unwrap();
        disconnected(app, &socket, Ending::Lost);
        let claim = Claim::new("secret", None).unwrap();
        let find_by = async |claim: &Claim, namespace| {
            let found = recovery::find(app, std::slice::from_ref(claim)).await.unwrap().remove(0);
            recovery::check(app, (&t, &ana, namespace), claim, found)
        };
        let find = async || find_by(&claim, "/").await.unwrap();
        let take = async |session: Session| recovery::take(app, session, &claim).await.unwrap();

        let session = find().await;
        assert_eq!((&session.node, session.generation), (&here, 0));
        assert!(session.lost_at.is_some(), "what was only noted counts");
        assert_eq!(find_by(&claim, "/chat").await.unwrap_err(), Reason::Unknown);
        for made_up in [i64::MAX, i64::MAX - 1, 1_000_000] {
            let claim = Claim::new("secret", Some(&made_up.to_string())).unwrap();
            let found = find_by(&claim, "/").await;
            assert_eq!(found.unwrap_err(), Reason::Unknown, "{made_up}");
        }
        let second = session.clone();
        let heir = take(session).await.unwrap();
        assert_eq!((heir.connection, heir.rooms.len()), (socket.connection.clone(), 1));
        assert!(take(second).await.is_none(), "somebody has");

        // Another node has taken it and lost it: what this one says late changes nothing.
        disconnected(app, &socket, Ending::Lost);
        write(app).await.unwrap();
        let session = find().await;
        let rooms = world.store.take_session(&session, &claim, "another node").await.unwrap();
        assert_eq!(rooms.unwrap().len(), 1);
        disconnected(app, &socket, Ending::Lost);
        write(app).await.unwrap();
        assert_eq!(find().await.lost_at, None);

        // It comes back here before this node has written that an older socket of it was lost.
        disconnected(app, &socket, Ending::Lost);
        let session = find().await;
        take(session).await.unwrap();
        write(app).await.unwrap();
        assert_eq!(find().await.lost_at, None);
        assert!(returns(&world, &self::socket("page")).await.is_empty(), "its rooms are its own");
        disconnected(app, &socket, Ending::Lost);
        assert!(find().await.lost_at.is_some());
    }
}

#[tokio::test]
async fn many_are_found_together() {
    for world in World::each().await {
        world.provision(&["ana", "ben"]).await;
        let app = &world.app;
        // More than one statement takes, and the last without a room.
        let names: Vec<String> = (0..35).map(|at| format!("socket-{at}")).collect();
        let claim = |name: &String| Claim::new(name, None).unwrap();
        for name in &names {
            let socket = socket(name);
            let came = Change::Came {
                user: socket.user.clone(),
                namespace: "/",
                pid: recovery::digest(name),
                since: Offset(0),
            };
            app.returning.note(&socket, came);
            if name != "socket-34" {
                join(&world, &socket, &["algebra"]).await;
            }
            disconnected(app, &socket, Ending::Lost);
        }
        let mut claims: Vec<Claim> = names.iter().map(claim).collect();
        claims.push(claim(&"nobody's".to_owned()));
        // One claims it twice, having heard more the second time.
        claims.push(Claim::new("socket-0", Some("1")).unwrap());
        let found = recovery::find(app, &claims).await.unwrap();
        let connection = |at: usize| found[at].as_ref().unwrap().connection.as_str().to_owned();
        assert_eq!((0..35).map(connection).collect::<Vec<_>>(), names);
        assert!(found[35].is_none());
        assert_eq!(connection(36), "socket-0");
        for (at, rooms) in [(0, 1), (34, 0)] {
            let session = found[at].clone().unwrap();
            let heir = recovery::take(app, session, &claims[at]).await.unwrap().unwrap();
            assert_eq!(heir.rooms.len(), rooms);
        }
    }
}
