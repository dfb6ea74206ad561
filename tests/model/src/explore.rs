//! The search: breadth first, which is complete to a depth, or the most promising state first,
//! which goes deep. It knows nothing of agreement.
//!
//! Invariants: a state is visited once, told from others by 64 bits of hash (some 10^8 states are one
//! chance in four thousand that two are taken for one); a fault comes with the steps that lead there.

use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// Something that can be explored.
pub trait System {
    /// All that there is at one moment.
    type State: Clone;
    /// What leads from one to the next.
    type Step: Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;
    /// All that may happen next. The order must depend on the state alone.
    fn next(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;
    /// What is wrong with a state.
    fn fault(&self, state: &Self::State) -> Option<String>;
    /// Tells a state from others.
    fn fingerprint(&self, state: &Self::State) -> u64;
    /// How near a state is to what is looked for.
    fn promise(&self, state: &Self::State, depth: u32) -> i64;
    /// What cannot be reached from a state, and should be.
    fn dead_end(&self, _state: &Self::State) -> Option<String> {
        None
    }
}

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most promising state first.
    pub directed: bool,
    /// States.
    pub states: usize,
    /// Time.
    pub time: Duration,
    /// Each how many states one is looked at for dead ends; 0 for none.
    pub dead_ends: usize,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Different states that were seen.
    pub states: usize,
    /// Steps to the furthest one that was left.
    pub depth: u32,
    /// How long it took.
    pub took: Duration,
    /// Whether there are no more states within the bounds of the system.
    pub exhausted: bool,
    /// How many states were looked at for dead ends.
    pub looked_at: usize,
    /// What is wrong, and how it came about.
    pub fault: Option<(String, Vec<String>)>,
}

impl Outcome {
    /// All of it in one line.
    pub fn line(&self) -> String {
        let (fault, steps) = match &self.fault {
            Some((fault, steps)) => (fault.as_str(), format!(" in {} steps", steps.len())),
            None if self.exhausted => ("no fault, all states seen", String::new()),
            None => ("no fault within the limits", String::new()),
        };
        let looked = match self.looked_at {
            0 => String::new(),
            n => format!(", {n} looked at for dead ends"),
        };
        let seconds = self.took.as_secs_f64();
        format!(
            "{fault}{steps}: {} states, depth {}{looked}, {seconds:.1} s",
            self.states, self.depth
        )
    }
}

/// Mixes 64 bits at a time, and is the same in every run.
#[derive(Default)]
struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ (product as u64).rotate_left(23) ^ 0x2545_f491_4f6c_dd1d;
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().fold(1, |word: u64, byte| word << 8 | u64::from(*byte));
            self.mix(word);
        }
    }
    fn write_u8(&mut self, word: u8) {
        self.mix(word.into());
    }
    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }
    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }
    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
    fn finish(&self) -> u64 {
        let mut end = Mixer(self.0);
        end.mix(0x6a09_e667_f3bc_c909);
        end.mix(0xbb67_ae85_84ca_a73b);
        end.0
    }
}

/// A hash that is the same in every run.
pub fn hash(of: &impl Hash) -> u64 {
    let mut mixer = Mixer::default();
    of.hash(&mut mixer);
    mixer.finish()
}

/// Leaves a hash as it is.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

type Seen = HashSet<u64, BuildHasherDefault<AsItIs>>;

/// Of each state: the one before, and which of its steps led here.
type Way = Vec<(u32, u16)>;

struct Frontier<S> {
    directed: bool,
    queue: VecDeque<(u32, u32, S)>,
    heap: BinaryHeap<(i64, u32, u32)>,
    waiting: HashMap<u32, S>,
}

impl<S> Frontier<S> {
    fn push(&mut self, promise: i64, id: u32, depth: u32, state: S) {
        if self.directed {
            self.heap.push((promise, id, depth));
            self.waiting.insert(id, state);
        } else {
            self.queue.push_back((id, depth, state));
        }
    }

    fn pop(&mut self) -> Option<(u32, u32, S)> {
        if self.directed {
            let (_, id, depth) = self.heap.pop()?;
            self.waiting.remove(&id).map(|state| (id, depth, state))
        } else {
            self.queue.pop_front()
        }
    }
}

fn steps<Y: System>(system: &Y, way: &Way, mut id: u32) -> Vec<String> {
    let mut turns = Vec::new();
    while id != 0 {
        let (before, turn) = way[id as usize];
        turns.push(turn);
        id = before;
    }
    let mut state = system.start();
    let told = turns.iter().rev().filter_map(|turn| {
        let (step, next) = system.next(&state).into_iter().nth(usize::from(*turn))?;
        state = next;
        Some(format!("{step:?}"))
    });
    told.collect()
}

/// Goes through the states of a system until it finds a fault or comes to a limit.
pub fn explore<Y: System>(system: &Y, limits: Limits) -> Outcome {
    let began = Instant::now();
    let first = system.start();
    let mut seen = Seen::default();
    seen.insert(system.fingerprint(&first));
    let mut way: Way = vec![(0, 0)];
    let mut frontier = Frontier {
        directed: limits.directed,
        queue: VecDeque::new(),
        heap: BinaryHeap::new(),
        waiting: HashMap::new(),
    };
    frontier.push(0, 0, 0, first);
    let (mut depth, mut left, mut looked_at, mut exhausted) = (0, 0_usize, 0, true);
    let end = |fault, states, depth, exhausted, looked_at| Outcome {
        states,
        depth,
        took: began.elapsed(),
        exhausted,
        looked_at,
        fault,
    };
    while let Some((id, at, state)) = frontier.pop() {
        depth = depth.max(at);
        left += 1;
        if left % 1024 == 0 && began.elapsed() > limits.time || way.len() >= limits.states {
            exhausted = false;
            break;
        }
        if limits.dead_ends > 0 && left % limits.dead_ends == 1 % limits.dead_ends {
            looked_at += 1;
            if let Some(fault) = system.dead_end(&state) {
                let fault = Some((fault, steps(system, &way, id)));
                return end(fault, way.len(), depth, false, looked_at);
            }
        }
        for (turn, (_, next)) in (0..).zip(system.next(&state)) {
            if !seen.insert(system.fingerprint(&next)) {
                continue;
            }
            let Ok(new) = u32::try_from(way.len()) else { break };
            way.push((id, turn));
            if let Some(fault) = system.fault(&next) {
                let fault = Some((fault, steps(system, &way, new)));
                return end(fault, way.len(), at + 1, false, looked_at);
            }
            let promise = if limits.directed { system.promise(&next, at + 1) } else { 0 };
            frontier.push(promise, new, at + 1, next);
        }
    }
    end(None, way.len(), depth, exhausted, looked_at)
}
