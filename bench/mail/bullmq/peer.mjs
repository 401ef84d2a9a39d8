// The peer of the mail benchmark: BullMQ with nodemailer and handlebars, as its documentation sets them up.
//
//   node peer.mjs work      consume until SIGTERM
//   node peer.mjs control   obey lines on standard input: pause | load PREFIX COUNT | resume | counts
//
// Settings come from the environment: REDIS_PORT, SMTP_PORT, CONCURRENCY, CONNECTIONS, TEMPLATE (a JSON file with
// subject, html and text, in handlebars).
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { Queue, Worker } from 'bullmq';
import Handlebars from 'handlebars';
import nodemailer from 'nodemailer';

const env = process.env;
const connection = { host: '127.0.0.1', port: Number(env.REDIS_PORT), maxRetriesPerRequest: null };
const name = 'email';

function work() {
  const source = JSON.parse(readFileSync(env.TEMPLATE, 'utf8'));
  const subject = Handlebars.compile(source.subject, { noEscape: true });
  const html = Handlebars.compile(source.html);
  const text = Handlebars.compile(source.text, { noEscape: true });
  const transport = nodemailer.createTransport({
    host: '127.0.0.1',
    port: Number(env.SMTP_PORT),
    secure: false,
    ignoreTLS: true,
    pool: true,
    maxConnections: Number(env.CONNECTIONS),
  });
  const worker = new Worker(
    name,
    async ({ data }) => {
      const receipt = await transport.sendMail({
        from: data.from,
        to: data.to,
        subject: subject(data.data),
        html: html(data.data),
        text: text(data.data),
      });
      return receipt.response;
    },
    { connection, concurrency: Number(env.CONCURRENCY) },
  );
  worker.on('error', (error) => console.error(error));
  worker.on('failed', (job, error) => console.error(`${job?.id} failed: ${error.message}`));
  worker.on('ready', () => console.log('ready'));
  process.on('SIGTERM', async () => {
    await worker.close();
    transport.close();
  });
}

async function control() {
  const queue = new Queue(name, {
    connection,
    defaultJobOptions: { attempts: 12, backoff: { type: 'exponential', delay: 5000 }, removeOnComplete: { age: 24 * 3600 } },
  });
  const commands = {
    pause: () => queue.pause(),
    resume: () => queue.resume(),
    counts: () => queue.getJobCounts('waiting', 'paused', 'active', 'delayed', 'failed'),
    load: async (prefix, count) => {
      const batch = 1000;
      for (let first = 0; first < Number(count); first += batch) {
        const jobs = [];
        for (let i = first; i < Math.min(first + batch, Number(count)); i++) {
          jobs.push({
            name: 'send',
            data: {
              to: `${prefix}${i}@example.com`,
              from: 'MedicaLink <no-reply@example.com>',
              data: { name: `Patient ${i}` },
            },
          });
        }
        await queue.addBulk(jobs);
      }
    },
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, ...rest] = line.split(' ');
    const answer = await commands[command](...rest);
    console.log(JSON.stringify(answer ?? null));
  }
  await queue.close();
}

await { work, control }[process.argv[2]]();
