// BullMQ as a contender of the engine benchmark, set up as its documentation does.
//
//   node --expose-gc peer.mjs work CONFIG      a worker
//   node --expose-gc peer.mjs produce CONFIG   a producer
//
// Both obey lines of JSON on standard input and answer with one line each, until the input ends. Config, requests and
// answers are those of bench/internal/peer; times are Unix microseconds.
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Queue, Worker } from 'bullmq';
import { Redis } from 'ioredis';

const [, , role, text] = process.argv;
const config = JSON.parse(text);
const [host, port] = config.redis.split(':');
const connection = { host, port: Number(port), db: config.db ?? 0, maxRetriesPerRequest: null };
const now = () => Math.round((performance.timeOrigin + performance.now()) * 1000);

function newRound({ base = 0, jobs = 0, mode = 'tally' }) {
  const round = { base, jobs, mode, seen: new Uint8Array(Math.ceil(jobs / 64) * 8), at: [], running: 0, done: 0, twice: 0, foreign: 0 };
  if (mode === 'stamp') {
    round.at = new Array(jobs).fill(0);
  }
  round.released = new Promise((resolve) => (round.release = resolve));
  mark(round, jobs);
  return round;
}

function mark(round, jobs) {
  round.first = 0;
  round.nth = 0;
  round.target = round.done + jobs;
  round.reached = new Promise((resolve) => (round.reach = resolve));
}

async function work() {
  let round = newRound({});
  const handle = async (job) => {
    const r = round;
    if (r.first === 0) {
      r.first = now();
    }
    r.running++;
    const n = parseInt(job.data.to, 10) - r.base;
    if (!(n >= 0 && n < r.jobs)) {
      r.foreign++;
    } else {
      const bit = 1 << n % 8;
      if (r.seen[n >> 3] & bit) {
        r.twice++;
      }
      r.seen[n >> 3] |= bit;
      if (r.mode === 'stamp') {
        r.at[n] = now();
      }
    }
    if (r.mode === 'block') {
      await r.released;
    }
    r.running--;
    if (++r.done === r.target) {
      r.nth = now();
      r.reach();
    }
  };
  const workers = [];
  for (let i = 0; i < config.replicas; i++) {
    for (const queue of config.queues) {
      // Concurrency is per queue; rounded up.
      const worker = new Worker(queue, handle, { connection, concurrency: Math.ceil(config.concurrency / config.queues.length) });
      worker.on('error', (error) => console.error(error));
      worker.on('failed', (job, error) => console.error(`${job?.id} failed: ${error.message}`));
      workers.push(worker);
    }
  }
  await Promise.all(workers.map((worker) => worker.waitUntilReady()));
  await serve({
    reset: (request) => void (round = newRound(request)),
    mark: ({ jobs }) => mark(round, jobs),
    wait: async () => {
      await round.reached;
      return { first: round.first, nth: round.nth };
    },
    count: () => ({ running: round.running, done: round.done }),
    report: () => {
      const { running, done, twice, foreign, first, nth, at } = round;
      return { running, done, twice, foreign, first, nth, at, seen: Buffer.from(round.seen).toString('base64') };
    },
    release: () => round.release(),
    collect: () => global.gc(),
  });
  await Promise.race([Promise.all(workers.map((worker) => worker.close())), sleep(5000)]);
}

async function produce() {
  const redis = new Redis(connection);
  const queues = config.queues.map((name) => new Queue(name, { connection, defaultJobOptions: { removeOnComplete: !config.keep } }));
  await Promise.all(queues.map((queue) => queue.waitUntilReady()));
  const of = (id) => queues[id % queues.length];
  const email = (id) => ({ ...config.email, to: `${String(id).padStart(8, '0')}@example.com` });
  const add = (id, options) => of(id).add('email', email(id), options);
  const ways = {
    one: async (base, jobs) => {
      for (let id = base; id < base + jobs; id++) {
        await add(id);
      }
    },
    many: async (base, jobs) => {
      let next = base;
      const caller = async () => {
        while (next < base + jobs) {
          await add(next++);
        }
      };
      await Promise.all(Array.from({ length: 64 }, caller));
    },
    bulk: async (base, jobs) => {
      const batch = 1000;
      for (let first = base; first < base + jobs; first += batch) {
        const lists = new Map();
        for (let id = first; id < Math.min(first + batch, base + jobs); id++) {
          const list = lists.get(of(id)) ?? [];
          list.push({ name: 'email', data: email(id) });
          lists.set(of(id), list);
        }
        await Promise.all([...lists].map(([queue, list]) => queue.addBulk(list)));
      }
    },
  };
  await serve({
    enqueue: async ({ how, base = 0, jobs }) => {
      const begin = now();
      await ways[how](base, jobs);
      return { begin, end: now() };
    },
    ping: async ({ base = 0, jobs, least, most }) => {
      const at = [];
      for (let id = base; id < base + jobs; id++) {
        await sleep(least + Math.random() * (most - least));
        at.push(now());
        await add(id);
      }
      return { at };
    },
    delay: async ({ base = 0, jobs, least, most }) => {
      const at = [];
      for (let id = base; id < base + jobs; id++) {
        let delay = least + Math.floor(Math.random() * (most - least));
        if (delay % 1000 === 0) {
          delay++;
        }
        at.push(now() + delay * 1000);
        await add(id, { delay });
      }
      return { at };
    },
    pause: async () => void (await Promise.all(queues.map((queue) => queue.pause()))),
    resume: async () => void (await Promise.all(queues.map((queue) => queue.resume()))),
    left: async () => {
      let left = 0;
      for (const queue of queues) {
        const counts = await queue.getJobCounts('waiting', 'paused', 'active', 'delayed', 'failed');
        if (counts.failed > 0) {
          throw new Error(`${counts.failed} jobs have failed`);
        }
        left += counts.waiting + counts.paused + counts.active + counts.delayed;
      }
      return { left };
    },
    clear: async () => void (await redis.flushdb()),
    size: async () => ({ bytes: Number(/^used_memory:(\d+)/m.exec(await redis.info('memory'))[1]) }),
  });
  await Promise.all(queues.map((queue) => queue.close()));
  redis.disconnect();
}

async function serve(commands) {
  console.log(JSON.stringify('ready'));
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    let answer;
    try {
      answer = (await commands[request.do](request)) ?? {};
    } catch (error) {
      answer = { error: error.message };
    }
    console.log(JSON.stringify(answer));
  }
}

await { work, produce }[role]();
process.exit(0);
