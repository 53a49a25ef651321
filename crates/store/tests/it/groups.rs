//! Study groups: places, owners and ends, whatever happens in whatever order or all at once.

use std::sync::Arc;

use carillon_domain::{
    Caller, Code, Done, Effect, Refusal, Timestamp,
    contract::{Command as _, Scope},
    ids::GroupId,
    ports::Store as _,
    study_group::{
        Place, StudyGroup, study_group_create::CreateStudyGroup,
        study_group_invite::InviteToStudyGroup, study_group_join::JoinStudyGroup,
        study_group_kick::KickFromStudyGroup, study_group_leave::LeaveStudyGroup,
        study_group_message::SendStudyGroupMessage,
    },
};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::runtime::Runtime;

use crate::world::{World, caller, reply, tenant, user};

async fn create(world: &World, owner: &Caller, max_members: u32, is_public: bool) -> GroupId {
    let command = CreateStudyGroup {
        max_members: Some(max_members),
        is_public: Some(is_public),
        ..CreateStudyGroup::example()
    };
    let done = world.ask(owner, &command).await.unwrap();
    GroupId::new(reply(&done)["group"]["id"].as_str().unwrap()).unwrap()
}

async fn join(world: &World, who: &Caller, group: &GroupId) -> Result<Done, Refusal> {
    world.ask(who, &JoinStudyGroup { group_id: group.clone() }).await
}

async fn leave(world: &World, who: &Caller, group: &GroupId) -> Result<Done, Refusal> {
    world.ask(who, &LeaveStudyGroup { group_id: group.clone() }).await
}

async fn row(world: &World, group: &GroupId) -> Option<StudyGroup> {
    world.store.read().await.unwrap().study_group(&tenant("t"), group).await.unwrap()
}

/// The payloads of the events of that name.
fn told(done: &Done, name: &str) -> Vec<serde_json::Value> {
    let emits = done.effects.iter().filter_map(|effect| match effect {
        Effect::Emit(emit) if emit.row.name == name => Some(emit),
        _ => None,
    });
    emits.map(|emit| serde_json::from_str(emit.payload.get()).unwrap()).collect()
}

fn code(result: &Result<Done, Refusal>) -> Option<Code> {
    result.as_ref().err().map(Refusal::code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_places_have_ten_takers_however_many_come_at_once() {
    const COMING: usize = 200;
    for world in World::each().await {
        let world = Arc::new(world);
        for round in 0..3 {
            let owner = caller("t", "owner");
            let group = create(&world, &owner, 11, true).await;
            let coming: Vec<_> = (0..COMING)
                .map(|n| {
                    let (world, group) = (world.clone(), group.clone());
                    tokio::spawn(async move {
                        join(&world, &caller("t", &format!("s{round}-{n}")), &group).await
                    })
                })
                .collect();
            let mut counts = Vec::new();
            for joined in coming {
                match joined.await.unwrap() {
                    Ok(done) => {
                        let came = told(&done, "study-group-member-joined");
                        counts.push(came[0]["memberCount"].as_i64().unwrap());
                        let joined = &told(&done, "study-group-joined")[0];
                        let members = joined["group"]["members"].as_array().unwrap().len();
                        assert_eq!(members, usize::try_from(counts[counts.len() - 1]).unwrap());
                    }
                    Err(refusal) => assert_eq!(refusal.code(), Code::GroupFull),
                }
            }
            counts.sort_unstable();
            assert_eq!(counts, (2..=11).collect::<Vec<_>>());
            let group = row(&world, &group).await.unwrap();
            assert_eq!((group.members.len(), &group.members[0]), (11, &owner.user));
            let mut reads = world.store.read().await.unwrap();
            let mut in_room = reads.members(&tenant("t"), &group.room_id).await.unwrap();
            let mut in_group = group.members;
            in_room.sort();
            in_group.sort();
            assert_eq!(in_room, in_group);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_are_the_last_to_leave_end_the_group_once() {
    for world in World::each().await {
        for _ in 0..15 {
            let (ana, ben) = (caller("t", "ana"), caller("t", "ben"));
            let group = create(&world, &ana, 5, true).await;
            join(&world, &ben, &group).await.unwrap();
            let (one, other) =
                tokio::join!(leave(&world, &ana, &group), leave(&world, &ben, &group));
            let done = [one.unwrap(), other.unwrap()];
            let count = |name| done.iter().map(|done| told(done, name).len()).sum::<usize>();
            assert_eq!(count("study-group-deleted"), 1);
            assert_eq!(count("study-group-member-left"), 2);
            assert!(count("study-group-owner-changed") <= 1);
            assert_eq!(row(&world, &group).await, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_while_the_last_one_leaves_owns_the_group_or_finds_none() {
    for world in World::each().await {
        for _ in 0..15 {
            let (ana, ben) = (caller("t", "ana"), caller("t", "ben"));
            let group = create(&world, &ana, 5, true).await;
            let (left, joined) =
                tokio::join!(leave(&world, &ana, &group), join(&world, &ben, &group));
            let left = left.unwrap();
            if joined.is_ok() {
                let row = row(&world, &group).await.unwrap();
                assert_eq!((row.members, row.owner_id), (vec![user("ben")], user("ben")));
                assert_eq!(told(&left, "study-group-owner-changed")[0]["ownerId"], "ben");
            } else {
                assert_eq!(code(&joined), Some(Code::NotFound));
                assert_eq!(told(&left, "study-group-deleted").len(), 1);
                assert_eq!(row(&world, &group).await, None);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statement_that_takes_a_place_guards_the_capacity() {
    for world in World::each().await {
        let (t, now) = (tenant("t"), Timestamp(1_700_000_000_123));
        let group = create(&world, &caller("t", "ana"), 2, true).await;
        let mut tx = world.store.begin(&t, Scope::Rows).await.unwrap();
        assert!(tx.add_group_member(&t, &group, &user("ben"), now).await.unwrap());
        assert!(!tx.add_group_member(&t, &group, &user("eve"), now).await.unwrap());
        assert_eq!(tx.remove_group_member(&t, &group, &user("eve"), now).await.unwrap(), None);
        assert_eq!(tx.remove_group_member(&t, &group, &user("ana"), now).await.unwrap(), Some(1));
        tx.delete_study_group(&t, &group, now).await.unwrap();
        let standing = tx.standing(&t, &group, &user("ben")).await.unwrap().unwrap();
        assert_eq!(standing.place, Place::Member, "a group with members is not deleted");
        tx.commit().await.unwrap();
    }
}

const PEOPLE: [&str; 5] = ["ana", "ben", "cleo", "dan", "eve"];
/// The one whom the property test makes an admin behind the server's back.
const DEPUTY: usize = 3;
const PROMOTE: &str = "UPDATE study_group_members SET is_admin = TRUE WHERE user_id = 'dan'";

#[derive(Clone, Debug)]
enum Step {
    Create { who: usize, max: usize, is_public: bool },
    Join(usize),
    Leave(usize),
    Kick(usize, usize),
    Invite(usize, usize),
    Promote,
    Say(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..PEOPLE.len();
    let step = prop_oneof![
        1 => (who(), 2..5usize, any::<bool>())
            .prop_map(|(who, max, is_public)| Step::Create { who, max, is_public }),
        6 => who().prop_map(Step::Join),
        4 => who().prop_map(Step::Leave),
        2 => (who(), who()).prop_map(|(by, whom)| Step::Kick(by, whom)),
        3 => (who(), who()).prop_map(|(by, whom)| Step::Invite(by, whom)),
        1 => Just(Step::Promote),
        2 => who().prop_map(Step::Say),
    ];
    (who(), 2..5usize, any::<bool>(), proptest::collection::vec(step, 1..40)).prop_map(
        |(who, max, is_public, mut steps)| {
            steps.insert(0, Step::Create { who, max, is_public });
            steps
        },
    )
}

/// The rules in the plainest form.
#[derive(Debug)]
struct Model {
    /// With whether they are an admin, in the order in which they came.
    members: Vec<(usize, bool)>,
    owner: usize,
    max: usize,
    is_public: bool,
    invited: Vec<usize>,
}

impl Model {
    fn has(&self, who: usize) -> bool {
        self.members.iter().any(|(member, _)| *member == who)
    }
    fn sees(&self, who: usize) -> bool {
        !self.members.is_empty() && (self.is_public || self.has(who) || self.invited.contains(&who))
    }
    fn manages(&self, who: usize) -> bool {
        self.owner == who || self.members.contains(&(who, true))
    }
    fn remove(&mut self, who: usize) {
        self.members.retain(|(member, _)| *member != who);
        let heir = self.members.iter().find(|(_, admin)| *admin).or(self.members.first());
        if let Some((heir, _)) = heir.filter(|_| self.owner == who) {
            self.owner = *heir;
        }
    }

    /// What the step is refused with, or `None` and it has happened.
    fn take(&mut self, step: &Step) -> Option<Code> {
        match *step {
            Step::Create { .. } | Step::Promote => unreachable!("handled before"),
            Step::Join(who) => {
                if !self.sees(who) {
                    return Some(Code::NotFound);
                } else if self.has(who) {
                    return Some(Code::AlreadyMember);
                } else if self.members.len() >= self.max {
                    return Some(Code::GroupFull);
                }
                self.members.push((who, false));
                self.invited.retain(|invited| *invited != who);
            }
            Step::Leave(who) | Step::Say(who) => {
                if !self.sees(who) {
                    return Some(Code::NotFound);
                } else if !self.has(who) {
                    return Some(Code::NotAMember);
                }
                if matches!(step, Step::Leave(_)) {
                    self.remove(who);
                }
            }
            Step::Kick(by, whom) | Step::Invite(by, whom) => {
                if !self.sees(by) {
                    return Some(Code::NotFound);
                } else if !self.has(by) {
                    return Some(Code::NotAMember);
                } else if !self.manages(by) {
                    return Some(Code::Forbidden);
                }
                if matches!(step, Step::Kick(..)) {
                    if whom == self.owner {
                        return Some(Code::Forbidden);
                    } else if !self.has(whom) {
                        return Some(Code::NotAMember);
                    }
                    self.remove(whom);
                } else if self.has(whom) {
                    return Some(Code::AlreadyMember);
                } else if !self.invited.contains(&whom) {
                    self.invited.push(whom);
                }
            }
        }
        None
    }
}

async fn play(world: &World, steps: &[Step]) {
    let people: Vec<_> = PEOPLE.iter().map(|id| caller("t", id)).collect();
    let mut game: Option<(GroupId, Model)> = None;
    for step in steps {
        match (step, &mut game) {
            (Step::Create { who, max, is_public }, game) => {
                let id =
                    create(world, &people[*who], u32::try_from(*max).unwrap(), *is_public).await;
                let (members, invited) = (vec![(*who, false)], Vec::new());
                let model =
                    Model { members, owner: *who, max: *max, is_public: *is_public, invited };
                *game = Some((id, model));
            }
            (Step::Promote, Some((_, model))) => {
                world.sql(PROMOTE, PROMOTE).await;
                for member in &mut model.members {
                    member.1 |= member.0 == DEPUTY;
                }
            }
            (step, Some((id, model))) => {
                let group_id = id.clone();
                let result = match *step {
                    Step::Join(who) => join(world, &people[who], id).await,
                    Step::Leave(who) => leave(world, &people[who], id).await,
                    Step::Kick(by, whom) => {
                        let user_id = user(PEOPLE[whom]);
                        world.ask(&people[by], &KickFromStudyGroup { group_id, user_id }).await
                    }
                    Step::Invite(by, whom) => {
                        let user_id = user(PEOPLE[whom]);
                        world.ask(&people[by], &InviteToStudyGroup { group_id, user_id }).await
                    }
                    Step::Say(who) => {
                        let message =
                            SendStudyGroupMessage { group_id, ..SendStudyGroupMessage::example() };
                        world.ask(&people[who], &message).await
                    }
                    Step::Create { .. } | Step::Promote => unreachable!("handled above"),
                };
                assert_eq!(code(&result), model.take(step), "{step:?} {model:?}");
            }
            (_, None) => unreachable!("the first step creates"),
        }
        let Some((id, model)) = &game else { continue };
        let stored = row(world, id).await;
        assert_eq!(stored.is_none(), model.members.is_empty());
        let Some(stored) = stored else { continue };
        let expected: Vec<_> = model.members.iter().map(|(who, _)| user(PEOPLE[*who])).collect();
        assert_eq!(stored.members, expected);
        assert_eq!(stored.owner_id, user(PEOPLE[model.owner]));
        assert!(stored.members.contains(&stored.owner_id) && stored.members.len() <= model.max);
        let mut in_room = world.store.read().await.unwrap();
        let mut in_room = in_room.members(&tenant("t"), &stored.room_id).await.unwrap();
        let mut expected = expected;
        expected.sort();
        in_room.sort();
        assert_eq!(in_room, expected);
    }
}

#[test]
fn a_group_is_what_its_rules_say_whatever_happens() {
    let runtime = Runtime::new().unwrap();
    let worlds = runtime.block_on(World::each());
    for world in &worlds {
        runtime.block_on(world.provision(&PEOPLE));
        let config =
            ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
        TestRunner::new(config)
            .run(&steps(), |steps| {
                runtime.block_on(play(world, &steps));
                Ok(())
            })
            .unwrap();
    }
}
