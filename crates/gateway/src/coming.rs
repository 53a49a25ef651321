//! Those who come, and what they ask of the database.
//!
//! A herd that comes back asks more than those who are here, and they would wait among it: for
//! connections, and for processors. So what they may go on from is found for many in one statement, few
//! enter at a time, and where that takes long, which it does when there is more to do than the machine
//! can, each turn is followed by a rest of the same length.
//!
//! There is a line for each: in one, everybody would be found before the first could enter.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    App as Domain, Refusal,
    recovery::{self, Claim, Session},
};
use futures_util::FutureExt as _;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::sleep,
};

/// More at a time would be no quicker.
const AT_ONCE: usize = 3;
/// As many as the longest statement takes (`store/src/rows.rs`).
const TOGETHER: usize = 32;
/// Nobody rests after a turn that took less.
const QUICK: Duration = Duration::from_millis(2);
/// With the database away nothing is gained by waiting longer.
const REST: Duration = Duration::from_millis(100);

/// The lines, in the order in which they are passed.
pub struct Coming {
    finding: Line<Claim, Option<Session>>,
    entering: Turns,
}

impl Coming {
    /// Inside a runtime.
    pub fn new(domain: &Arc<Domain>) -> Self {
        let domain = domain.clone();
        let find = move |claims: Vec<Claim>| {
            let domain = domain.clone();
            async move { recovery::find(&domain, &claims).await }
        };
        Self { finding: Line::new(find), entering: Turns::default() }
    }

    /// What a socket may go on from.
    pub async fn find(&self, claim: Claim) -> Result<Option<Session>, Refusal> {
        self.finding.ask(claim).await
    }

    /// Waits for a turn to go on from that, and to be shown to the others.
    pub async fn turn(&self) -> Turn {
        self.entering.next().await
    }
}

/// As many as may enter at a time.
struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turns {
    async fn next(&self) -> Turn {
        // Nobody closes it.
        let place = self.0.clone().acquire_owned().await.ok();
        Turn { place, since: Instant::now() }
    }
}

/// Where questions wait until they are asked together.
struct Line<Q, A>(mpsc::UnboundedSender<Waiting<Q, A>>);

/// A question, and who waits for its answer.
type Waiting<Q, A> = (Q, oneshot::Sender<A>);

impl<Q: Send + 'static, A: Send + 'static> Line<Q, A> {
    /// `ask` answers questions in their order.
    fn new<F>(ask: impl Fn(Vec<Q>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<A>, Refusal>> + Send + 'static,
    {
        // Each connection has one question at most.
        let (questions, waiting) = mpsc::unbounded_channel();
        tokio::spawn(serve(waiting, ask));
        Self(questions)
    }

    async fn ask(&self, question: Q) -> Result<A, Refusal> {
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send((question, answer));
        answered.await.map_err(|_| Refusal::Unavailable(None))
    }
}

/// Until nobody is left who could ask.
async fn serve<Q, A, F>(
    mut waiting: mpsc::UnboundedReceiver<Waiting<Q, A>>,
    ask: impl Fn(Vec<Q>) -> F,
) where
    F: Future<Output = Result<Vec<A>, Refusal>>,
{
    let mut together = Vec::new();
    while waiting.recv_many(&mut together, TOGETHER).await > 0 {
        let asked = together.drain(..).filter(|(_, answer)| !answer.is_closed());
        let (questions, answers): (Vec<_>, Vec<_>) = asked.unzip();
        let since = Instant::now();
        let result = AssertUnwindSafe(ask(questions)).catch_unwind().await;
        // Who gets no answer is told that the database is away.
        for (answer, to) in result.into_iter().flatten().flatten().zip(answers) {
            let _ = to.send(answer);
        }
        if let Some(rest) = rest(since.elapsed()) {
            sleep(rest).await;
        }
    }
}

/// How long is rested after a turn.
fn rest(took: Duration) -> Option<Duration> {
    (took >= QUICK).then(|| took.min(REST))
}

/// Ends when it is dropped, and the rest after it.
pub struct Turn {
    place: Option<OwnedSemaphorePermit>,
    since: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (place, rest) = (self.place.take(), rest(self.since.elapsed()));
        if let (Some(rest), Ok(runtime)) = (rest, Handle::try_current()) {
            runtime.spawn(async move {
                sleep(rest).await;
                drop(place);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn few_ask_at_a_time_and_rest_as_long_as_they_asked() {
        let entering = Turns::default();
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(entering.next().await);
        }
        assert_eq!(entering.0.available_permits(), 0);
        drop(turns.pop());
        assert_eq!(entering.0.available_permits(), 1, "it was quick");
        turns.push(entering.next().await);
        let took = Duration::from_millis(50);
        let mut slow = turns.pop().unwrap();
        slow.since = Instant::now().checked_sub(took).unwrap();
        let ended = Instant::now();
        drop(slow);
        let _next = entering.next().await;
        assert!(ended.elapsed() >= took);
    }

    #[tokio::test]
    async fn what_waits_is_asked_together_and_each_hears_their_own_answer() {
        let (asked, go_on) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let (sizes, gate) = (asked.clone(), go_on.clone());
        let line = Line::new(move |questions: Vec<usize>| {
            let (sizes, gate) = (sizes.clone(), gate.clone());
            async move {
                sizes.lock().unwrap().push(questions.len());
                gate.notified().await;
                match questions[..] {
                    [7] => Err(Refusal::Forbidden),
                    [8] => panic!("on purpose"),
                    _ => Ok(questions.into_iter().map(|one| one * 10).collect()),
                }
            }
        });
        let all = join_all((0..TOGETHER * 2).map(|one| line.ask(one)));
        let opened = async {
            for _ in 0..3 {
                go_on.notify_one();
                tokio::task::yield_now().await;
            }
        };
        let (answers, ()) = tokio::join!(all, opened);
        let answers: Vec<usize> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..TOGETHER * 2).map(|one| one * 10).collect::<Vec<_>>());
        assert_eq!(*asked.lock().unwrap(), [TOGETHER, TOGETHER]);
        // What goes wrong is refused, and the next is answered all the same.
        for (question, is_answered) in [(7, false), (8, false), (9, true)] {
            go_on.notify_one();
            assert_eq!(line.ask(question).await.is_ok(), is_answered, "{question}");
        }
    }
}
