// Asks a site for a page, on a new connection each time, with one agent and its sessions.
'use strict';
const https = require('https');

const [port, version, connections] = process.argv.slice(2);
const agent = new https.Agent({
  keepAlive: false,
  rejectUnauthorized: false,
  minVersion: `TLSv${version}`,
  maxVersion: `TLSv${version}`,
});

function ask() {
  return new Promise((resolve, reject) => {
    const request = https.get({ host: 'localhost', port, path: '/', agent }, (answer) => {
      answer.on('error', reject);
      answer.on('close', resolve);
      answer.resume();
    });
    request.on('error', reject);
  });
}

(async () => {
  for (let i = 0; i < Number(connections); i++) await ask();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
