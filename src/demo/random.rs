//! A small generator of repeatable numbers: splitmix64, keyed by what the number is for.

/// The same key gives the same numbers on every machine and in every release: the demonstration depends on it, which
/// is why this is no library's generator.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Numbers for one purpose of one case. Drawing more for one purpose never shifts another's.
    pub fn keyed(seed: u64, case: u64, purpose: &str) -> Self {
        // FNV-1a, then two rounds of mixing so that neighbouring cases have nothing in common.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in purpose.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let mut random = Self { state: seed ^ hash };
        random.state = random.next().wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.state = random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least 0, less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// At least `low`, less than `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// At least 0, less than `bound`; 0 where there is nothing to choose from.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    pub fn hex(&mut self, digits: usize) -> String {
        let mut text = String::with_capacity(digits + 16);
        while text.len() < digits {
            text.push_str(&format!("{:016x}", self.next()));
        }
        text.truncate(digits);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The published first outputs for the seed 1234567.
        let mut random = Random { state: 1_234_567 };
        let drawn: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            drawn,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn purposes_do_not_disturb_each_other() {
        let first = Random::keyed(1, 2, "a").next();
        let mut other = Random::keyed(1, 2, "b");
        other.next();
        assert_eq!(first, Random::keyed(1, 2, "a").next());
        assert_ne!(first, Random::keyed(1, 2, "b").next());
        assert_ne!(first, Random::keyed(1, 3, "a").next());
    }
}
