//! Unread counts always equal a recount, whatever happens in whatever order.

use std::collections::BTreeMap;

use carillon_domain::{
    MessageId, RoomId,
    chat::{
        MAX_UNREAD, join_room::JoinRoom, mark_message_read::MarkMessageRead,
        send_message::SendMessage,
    },
    contract::Command as _,
    ports::Store as _,
};
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::world::{World, caller, reply, tenant, user};

const PEOPLE: [&str; 3] = ["ana", "ben", "eve"];

#[derive(Clone, Debug)]
enum Step {
    Join(usize),
    Send(usize),
    /// Somebody marks the n-th message, counted from the newest.
    Mark(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (0..PEOPLE.len()).prop_map(Step::Join),
        3 => (0..PEOPLE.len()).prop_map(Step::Send),
        3 => (0..PEOPLE.len(), 0..8usize).prop_map(|(who, back)| Step::Mark(who, back)),
    ];
    proptest::collection::vec(step, 1..30)
}

/// The rules, in the plainest form: a list of senders and a position per member.
#[derive(Default)]
struct Model {
    senders: Vec<usize>,
    ids: Vec<String>,
    read: BTreeMap<usize, usize>,
}

impl Model {
    fn unread(&self, who: usize) -> Option<usize> {
        let read = *self.read.get(&who)?;
        Some(self.senders[read..].iter().filter(|sender| **sender != who).count())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn unread_counts_equal_a_recount(steps in steps()) {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let world = World::sqlite().await;
            let people: Vec<_> = PEOPLE.iter().map(|id| caller("t", id)).collect();
            let room = RoomId::new("algebra").unwrap();
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Join(who) => {
                        let join = JoinRoom { room_id: room.clone() };
                        world.ask(&people[who], &join).await.unwrap();
                        model.read.entry(who).or_insert(model.senders.len());
                    }
                    Step::Send(who) => {
                        let message = SendMessage {
                            room_id: room.clone(), message: "x".into(), ..SendMessage::example()
                        };
                        let sent = world.ask(&people[who], &message).await;
                        assert_eq!(sent.is_ok(), model.read.contains_key(&who));
                        if let Ok(done) = sent {
                            model.senders.push(who);
                            model.ids.push(reply(&done)["id"].as_str().unwrap().to_owned());
                        }
                    }
                    Step::Mark(who, back) => {
                        let Some(index) = model.ids.len().checked_sub(back + 1) else { continue };
                        let message_id = MessageId::new(&model.ids[index]).unwrap();
                        let marked = world.ask(&people[who], &MarkMessageRead { message_id }).await;
                        assert_eq!(marked.is_ok(), model.read.contains_key(&who));
                        if let Some(read) = model.read.get_mut(&who)
                            && model.senders[index] != who
                        {
                            *read = (*read).max(index + 1);
                        }
                        if let Ok(done) = marked {
                            let expected = model.unread(who).unwrap();
                            assert_eq!(reply(&done)["unreadCount"], expected);
                        }
                    }
                }
                for (who, id) in PEOPLE.iter().enumerate() {
                    let mut reads = world.store.read().await.unwrap();
                    let unread = reads.unread(&tenant("t"), &room, &user(id)).await.ok();
                    let count = unread.map(|unread| usize::try_from(unread.count).unwrap());
                    assert_eq!(count, model.unread(who));
                }
            }
        });
    }
}

#[tokio::test]
async fn unread_messages_are_counted_no_further_than_anybody_looks() {
    for world in World::each().await {
        let (ana, ben, room) =
            (caller("t", "ana"), caller("t", "ben"), RoomId::new("algebra").unwrap());
        for who in [&ana, &ben] {
            world.ask(who, &JoinRoom { room_id: room.clone() }).await.unwrap();
        }
        let message =
            SendMessage { room_id: room.clone(), message: "x".into(), ..SendMessage::example() };
        for _ in 0..=MAX_UNREAD {
            world.ask(&ana, &message).await.unwrap();
        }
        let mut reads = world.store.read().await.unwrap();
        let unread = reads.unread(&tenant("t"), &room, &user("ben")).await.unwrap();
        assert_eq!(unread.count, MAX_UNREAD);
        assert_eq!(unread.last_seq.0, MAX_UNREAD + 1);
    }
}
