// What the mock answers when people look at the page, and for the screenshots.

import { setTimeout as sleep } from 'node:timers/promises';
import { say } from './mock.mjs';

export const ENGLISH = `The pump runs outside its range. Three things are worth checking, in this order:

1. **Inlet pressure** below 0.8 bar: the filter is probably clogged.
2. **Temperature** of the bearing. Above 75 °C, stop the pump.
3. The log of the last hour, for instance with

\`\`\`python
def exceeded(readings, limit=75.0):
    """Readings above the limit, with their times."""
    return [(at, value) for at, value in readings if value > limit]
\`\`\`

| Reading | Now | Limit | State |
|---|---:|---:|:---:|
| Inlet pressure (bar) | 0.62 | 0.80 | low |
| Bearing (°C) | 71.5 | 75.0 | fine |
| Flow (m³/h) | 11.9 | 12.0 | low |

> Close the valve before you open the filter.
`;

export const CHINESE = `泵的运行参数已偏离正常范围，建议按以下顺序检查：

1. **入口压力：**低于 0.8 bar，滤网很可能已堵塞。
2. **轴承温度：**超过 75 °C 时应立即停泵。
3. 最近一小时的日志，例如：

\`\`\`python
def exceeded(readings, limit=75.0):
    """超过限值的读数及其时间。"""
    return [(at, value) for at, value in readings if value > limit]
\`\`\`

| 项目 | 当前值 | 限值 | 状态 |
|---|---:|---:|:---:|
| 入口压力（bar） | 0.62 | 0.80 | 偏低 |
| 轴承温度（°C） | 71.5 | 75.0 | 正常 |
| 流量（m³/h） | 11.9 | 12.0 | 偏低 |

> 打开滤网前，请先关闭阀门。
`;

export async function demoReply(reply) {
  const chinese = /[\u4e00-\u9fff]/.test(reply.body.messages.at(-1).content);
  reply.reasoning(chinese ? '先看压力，再看温度，最后查日志。' : 'Pressure first, then temperature, then the log.');
  await sleep(1500);
  await say(reply, chinese ? CHINESE : ENGLISH, 8);
  reply.end();
}

/** A function that gives metrics which move as those of a server with some users do, a step at each call. */
export function demoMetrics() {
  const bounds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
  const ttft = { counts: new Map(), sum: 0, count: 0 };
  const between = { counts: new Map(), sum: 0, count: 0 };
  const total = { completion: 0, prompt: 0, cached: 0 };
  let step = 0;
  const observe = (histogram, value, times = 1) => {
    for (const bound of bounds) if (value <= bound) histogram.counts.set(bound, (histogram.counts.get(bound) ?? 0) + times);
    histogram.count += times;
    histogram.sum += value * times;
  };
  const write = (name, { counts, sum, count }) => [
    ...bounds.map((bound) => `${name}_bucket{model="qwen3-0.6b",le="${bound}"} ${counts.get(bound) ?? 0}`),
    `${name}_bucket{model="qwen3-0.6b",le="+Inf"} ${count}`,
    `${name}_sum{model="qwen3-0.6b"} ${sum}`,
    `${name}_count{model="qwen3-0.6b"} ${count}`,
  ].join('\n');
  return () => {
    step += 1;
    const wave = (period, shift = 0) => (1 + Math.sin((step + shift) / period)) / 2;
    const running = Math.round(1 + 6 * wave(11) + wave(3));
    const rate = Math.round(14 * running * (0.9 + 0.2 * wave(2.3)));
    total.completion += rate;
    total.prompt += 120 + Math.round(200 * wave(5));
    total.cached += 60 + Math.round(150 * wave(5, 2));
    observe(ttft, 0.12 + 0.3 * wave(7), 2);
    if (step % 6 === 0) observe(ttft, 0.7);
    observe(between, 0.03 + 0.02 * wave(11), rate);
    observe(between, 0.09, 3);
    const label = '{model="qwen3-0.6b"}';
    const used = 20 * running;
    const cached = Math.round(120 + 60 * wave(31));
    return [
      `moli_requests_running${label} ${running}`,
      `moli_requests_waiting${label} ${Math.max(0, running - 5)}`,
      `moli_completion_tokens_total${label} ${total.completion}`,
      `moli_prompt_tokens_total${label} ${total.prompt}`,
      `moli_cached_tokens_total${label} ${total.cached}`,
      `moli_rejected_total{model="qwen3-0.6b",reason="queue_full"} ${Math.floor(step / 9)}`,
      'moli_rejected_total{reason="unauthorized"} 3',
      `moli_kv_pages${label} 512`,
      `moli_kv_pages_cached${label} ${cached}`,
      `moli_kv_pages_free${label} ${512 - used - cached}`,
      write('moli_ttft_seconds', ttft),
      write('moli_inter_token_seconds', between),
      `moli_resident_bytes ${Math.round((612 + 30 * wave(40)) * 2 ** 20)}`,
      '# EOF',
      '',
    ].join('\n');
  };
}
