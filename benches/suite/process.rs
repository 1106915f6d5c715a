//! What /proc says: processor time and memory of processes, and how busy the machine is.

use crate::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;

/// Linux counts processor time for user space in hundredths of a second, whatever the kernel's own tick is.
const TICK_US: f64 = 10_000.0;

/// A process whose processor time is accounted for under a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Watched {
    pub name: String,
    pub pid: u32,
    /// Its children count as well, those that have ended included: PostgreSQL has a process for each session.
    pub with_children: bool,
}

impl Watched {
    pub fn one(name: &str, pid: u32) -> Self {
        Self { name: name.to_owned(), pid, with_children: false }
    }

    pub fn family(name: &str, pid: u32) -> Self {
        Self { name: name.to_owned(), pid, with_children: true }
    }

    /// Processor time used so far, in microseconds.
    pub fn cpu_us(&self) -> Result<f64> {
        let own = stat(self.pid).with(|| format!("{} (pid {}) is gone", self.name, self.pid))?;
        if !self.with_children {
            return Ok(own.own_us);
        }
        let living: f64 = fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(stat)
            .filter(|child| child.parent == self.pid)
            .map(|child| child.own_us + child.ended_us)
            .sum();
        Ok(own.own_us + own.ended_us + living)
    }
}

struct Stat {
    parent: u32,
    own_us: f64,
    /// Of children that have ended and been waited for.
    ended_us: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |n: usize| fields.get(n)?.parse::<f64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own_us: (ticks(11)? + ticks(12)?) * TICK_US,
        ended_us: (ticks(13)? + ticks(14)?) * TICK_US,
    })
}

/// Processor time of the whole machine, in microseconds.
pub fn machine_cpu_us() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    // cpu user nice system idle iowait irq softirq steal
    let ticks: Vec<f64> =
        first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        return Err("/proc/stat is not as expected".into());
    };
    Ok((user + nice + system + irq + softirq) * TICK_US)
}

/// Memory of a process, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident, shared pages counted in full.
    pub rss: f64,
    /// Shared pages counted by their share.
    pub pss: f64,
}

pub fn memory(pid: u32) -> Result<Memory> {
    let kib = |file: &str, name: &str| -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        value.with(|| format!("/proc/{pid}/{file} has no {name}"))
    };
    Ok(Memory {
        rss: kib("status", "VmRSS:")? / 1024.0,
        pss: kib("smaps_rollup", "Pss:")? / 1024.0,
    })
}

/// Where and on what the figures were taken.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub memory_gib: f64,
    pub kernel: String,
    pub load_average_before: String,
    pub load_average_after: String,
}

impl Machine {
    pub fn read() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = file("/proc/cpuinfo");
        let processor = cpu.lines().find(|line| line.starts_with("model name"));
        let memory = file("/proc/meminfo");
        let memory_kib: f64 = memory
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok()
            })
            .unwrap_or(0.0);
        Self {
            cores: cores(),
            processor: processor
                .and_then(|line| line.split_once(": "))
                .map_or_else(|| "unknown".into(), |(_, name)| name.to_owned()),
            memory_gib: (memory_kib / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average_before: load_average(),
            load_average_after: String::new(),
        }
    }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load averages of the last 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The kind of file system a folder lies on, by the longest mount point above it.
pub fn file_system(folder: &std::path::Path) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            folder.starts_with(point).then_some((point.len(), kind))
        })
        .max()
        .map_or_else(|| "unknown".into(), |(_, kind)| kind.to_owned())
}
