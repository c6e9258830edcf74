// Answers each line with what its clocks show, in JSON: nanoseconds of the wall clock, and of the monotonic one.
const lines = require("readline").createInterface({ input: process.stdin });
lines.on("line", () => {
  console.log(`[${BigInt(Date.now()) * 1000000n},${process.hrtime.bigint()}]`);
});
console.log("ready");
