//! A listing from its first page to its last.

use super::ask::Ask;
use super::draw::{Dice, Draw};
use super::model::{
    CRITICS, DECISIONS, Datum, ENTRIES, Message, NOUNS, OVERRIDES, RULES, Row, State, Tree,
    ordering,
};
use super::text::text;
use crate::world::As;
use casebook::pb;
use pb::consistency::Requirement;
use std::sync::Arc;

/// Mostly decisions, which have the most kinds of fields.
const ABOUT: &[usize] = &[
    DECISIONS, DECISIONS, DECISIONS, DECISIONS, DECISIONS, DECISIONS, RULES, RULES, OVERRIDES,
    CRITICS, ENTRIES, ENTRIES,
];

pub struct Walk {
    number: u64,
    dice: Dice,
    ask: Ask,
    /// The same filter in the other form.
    twin: Option<pb::Selector>,
    /// Rows change between its pages.
    lingers: bool,
    /// What all pages must show.
    state: Arc<State>,
    want: Vec<Arc<Row>>,
    /// How many of these were passed.
    place: usize,
    pub pages: usize,
    pub is_over: bool,
}

impl Walk {
    /// The case of this number, on the newest state or an older one.
    pub fn draw(seed: u64, number: u64, states: &[Arc<State>]) -> Self {
        let mut dice = Dice::new(seed, 1 + number);
        let noun = *dice.pick(ABOUT);
        let about = &NOUNS[noun];
        let is_past = about.has_snapshots && dice.chance(25);
        let newest = states.last().expect("a state");
        let state = if is_past { dice.pick(states) } else { newest };
        let revision = pb::Revision { token: state.revision.clone() };
        let requirement = match dice.below(6) {
            _ if is_past => Some(Requirement::AtExactSnapshot(revision)),
            0 if about.has_snapshots => Some(Requirement::AtLeastAsFresh(revision)),
            _ => None,
        };
        let consistency = requirement.map(|one| pb::Consistency { requirement: Some(one) });
        let show_deleted = about.has_deleted && dice.chance(30);

        let rows = &state.nouns[noun];
        let mut draw = Draw { dice: &mut dice, noun: about, rows };
        let (tree, selector, twin) = draw.selector();
        let (order, order_by) = draw.order();
        let window = about.window.filter(|_| draw.dice.chance(15)).map(|field| {
            let field = about.field(field);
            (field, draw.window(field))
        });
        let children = rows.iter().filter(|row| !row.parent.is_empty() && !row.hidden);
        let children: Vec<_> = children.filter(|_| dice.chance(10)).collect();
        let parent = children.first().copied().filter(|_| dice.chance(30));
        let selects = |row: &&Arc<Row>| {
            let in_window = |field: usize, from, to| match row.values[field] {
                Datum::Time(time) => (from..to).contains(&time),
                _ => false,
            };
            (show_deleted || !row.hidden)
                && parent.is_none_or(|parent| parent.parent == row.parent)
                && window
                    .as_ref()
                    .is_none_or(|(field, (_, from, to))| in_window(*field, *from, *to))
                && tree.as_ref().is_none_or(|tree| tree.selects(about, row))
        };
        let mut want: Vec<_> = rows.iter().filter(selects).cloned().collect();
        want.sort_by(|a, b| ordering(&order, a, b));

        let skip = if dice.chance(20) { dice.below(want.len() + 3) } else { 0 };
        let lingers = dice.chance(30);
        let left = want.len().saturating_sub(skip);
        // Often one page: each costs as much as a case.
        let page_size = match dice.below(16) {
            0 => *dice.pick(&[0, 1000, 5000]),
            // Just full, and with room for one more.
            1..=5 => left.max(1),
            6..=9 => left + 1,
            // One row on the last page, and a last page that is just full.
            10..=11 => left.saturating_sub(1).max(1),
            12..=13 => left.div_ceil(2).max(1),
            14 if left < 5 => 1,
            _ => left / 3 + 1 + dice.below(2),
        };
        let page = pb::PageRequest {
            page_size: page_size as i32,
            skip: skip as i32,
            order_by,
            include_total_size: dice.chance(20),
            page_token: String::new(),
        };
        let window = window.map(|(_, (window, ..))| window);
        let whole = dice.chance(15);
        // The second field of both is decision_id.
        let parent = parent.map(|row| match &row.values[1] {
            Datum::Text(id) => id.clone(),
            other => panic!("{other:?} is not an id"),
        });
        let ask = Ask { noun, page, selector, window, consistency, show_deleted, parent, whole };
        let (state, place, pages, is_over) = (Arc::clone(state), skip, 0, false);
        Self { number, dice, ask, twin, lingers, state, want, place, pages, is_over }
    }

    /// Walks to the end, or for one page if rows shall change before the next.
    pub async fn run(mut self, clients: &[As]) -> Self {
        self.turn(clients).await;
        if let Some(twin) = self.twin.take() {
            self.compare_twin(twin, clients).await;
        }
        while !self.is_over && !self.lingers {
            self.turn(clients).await;
        }
        self
    }

    /// Reads one page, from either server, and compares it.
    async fn turn(&mut self, clients: &[As]) {
        let client = self.dice.pick(clients);
        let (found, info) = match self.ask.answer(client).await {
            Ok(answer) => answer,
            Err(status) => self.fail(&self.ask, &format!("{status:?}")),
        };
        self.pages += 1;
        let size = match self.ask.page.page_size {
            0 => 50,
            size => size.min(1000) as usize,
        };
        let start = self.place.min(self.want.len());
        let end = self.want.len().min(start + size);
        self.compare(&self.ask, &found, start, end);
        let total = if self.ask.page.include_total_size { self.want.len() } else { 0 };
        if (info.total_size, info.total_size_is_estimate) != (total as i64, false) {
            self.fail(&self.ask, &format!("a total of {}, not {total}", info.total_size));
        }
        if info.read_at.map(|read_at| read_at.token).as_ref() != Some(&self.state.revision) {
            self.fail(&self.ask, "it was read at another revision");
        }
        self.is_over = info.next_page_token.is_empty();
        if self.is_over != (end == self.want.len()) {
            self.fail(&self.ask, &format!("ended at {end} of {}", self.want.len()));
        }
        let page = &mut self.ask.page;
        page.page_token = info.next_page_token;
        page.skip = if self.dice.chance(10) { self.dice.below(4) as i32 } else { 0 };
        page.include_total_size = self.dice.chance(10);
        self.place = end + page.skip as usize;
    }

    /// The first rows and the number of all by the other form of the filter.
    async fn compare_twin(&mut self, selector: pb::Selector, clients: &[As]) {
        let page = pb::PageRequest {
            page_size: 20,
            include_total_size: true,
            order_by: self.ask.page.order_by.clone(),
            ..Default::default()
        };
        let ask = Ask { selector, page, ..self.ask.clone() };
        match ask.answer(self.dice.pick(clients)).await {
            Ok((found, info)) => {
                self.compare(&ask, &found, 0, self.want.len().min(20));
                if info.total_size != self.want.len() as i64 {
                    self.fail(&ask, &format!("a total of {}", info.total_size));
                }
            }
            Err(status) => self.fail(&ask, &format!("{status:?}")),
        }
    }

    /// Whether these are the rows wanted from `start` to `end`.
    fn compare(&self, ask: &Ask, found: &[Message], start: usize, end: usize) {
        let want = &self.want[start..end];
        let rows: Vec<_> = found.iter().map(Message::last).collect();
        let same = rows.iter().zip(want).take_while(|(row, want)| **row == want.last).count();
        if same < rows.len().max(want.len()) {
            // The whole row, whatever part of it the answer shows.
            let all = &self.state.nouns[ask.noun];
            let stands = rows.get(same).map(|last| all.iter().find(|row| row.last == *last));
            self.fail(
                ask,
                &format!(
                    "{} rows instead of {}; in place {} stands {stands:?} instead of {:?}",
                    rows.len(),
                    want.len(),
                    start + same,
                    want.get(same),
                ),
            );
        }
        // Of what belongs to a decision no answer shows how its versions count on with the decision's.
        if ask.whole && ![OVERRIDES, CRITICS].contains(&ask.noun) {
            for (found, want) in found.iter().zip(want) {
                if *found != want.message {
                    self.fail(ask, &format!("{found:#?} instead of {:#?}", want.message));
                }
            }
        }
    }

    fn fail(&self, ask: &Ask, what: &str) -> ! {
        panic!("case {}: {what}\n{ask:#?}\nlingers: {}", self.number, self.lingers);
    }
}

impl Draw<'_> {
    /// A tree as a structure or as an expression, and the other of the two, if both can say it.
    pub fn selector(&mut self) -> (Option<Tree>, pb::Selector, Option<pb::Selector>) {
        if self.dice.chance(5) {
            return Default::default();
        }
        loop {
            let tree = self.tree();
            let n = self.rows.iter().filter(|row| tree.selects(self.noun, row)).count();
            // What selects all or nothing tells little.
            if (n == 0 || n == self.rows.len()) && self.dice.chance(75) {
                continue;
            }
            let filter = tree.wire(self.noun);
            let filter =
                filter.map(|filter| pb::Selector { filter: Some(filter), ..Default::default() });
            let expression = text(&tree, self.noun, self.dice);
            let expression = expression.map(|expression| pb::Selector { expression, filter: None });
            let twin = self.dice.chance(15);
            return match (filter, expression) {
                (Some(filter), Some(text)) if self.dice.chance(50) => {
                    (Some(tree), text, Some(filter).filter(|_| twin))
                }
                (Some(filter), text) => (Some(tree), filter, text.filter(|_| twin)),
                (None, Some(text)) => (Some(tree), text, None),
                (None, None) => continue,
            };
        }
    }
}
