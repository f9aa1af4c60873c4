// Markdown in a real browser: what it becomes, that streaming comes to the same, and that its time is linear.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { CHINESE, ENGLISH } from './demo.mjs';
import { closeBrowser, render, withPage } from './harness.mjs';
import { startMock } from './mock.mjs';

let mock;
before(async () => {
  mock = await startMock();
});
after(async () => {
  await closeBrowser();
  mock.stop();
});

/** The elements of each text, written as HTML without the parts that all links and code blocks have. */
function shapes(page, texts) {
  return page.evaluate(async (sources) => {
    const { MarkdownView } = await import('/markdown.js');
    return sources.map((source) => {
      const root = document.createElement('div');
      new MarkdownView(root).set(source);
      for (const link of root.querySelectorAll('a')) {
        if (link.rel !== 'noopener noreferrer nofollow' || link.target !== '_blank') return 'a link without its guards';
        for (const name of ['rel', 'target', 'title']) link.removeAttribute(name);
      }
      for (const caption of root.querySelectorAll('figcaption')) caption.replaceWith(`[${caption.firstChild.textContent}]`);
      return root.innerHTML;
    });
  }, texts);
}

const CASES = [
  ['one\ntwo\n\nthree', '<p>one<br>two</p><p>three</p>'],
  ['# A\n### C# ##\n####### no', '<h3>A</h3><h5>C#</h5><p>####### no</p>'],
  ['*a* **b** ***c*** _d_ ~~e~~ f*g*h', '<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> <del>e</del> f<em>g</em>h</p>'],
  ['**注意：**请先停机', '<p><strong>注意：</strong>请先停机</p>'],
  ['snake_case_name and 2 * 3 * 4 and ~5', '<p>snake_case_name and 2 * 3 * 4 and ~5</p>'],
  ['**a *b** c* *d', '<p><em><em>a <em>b</em></em> c</em> *d</p>'],
  ['\\*a\\* \\\\ \\q', '<p>*a* \\ \\q</p>'],
  ['`a*b*` ``c ` d`` `` ` `` `e', '<p><code>a*b*</code> <code>c ` d</code> <code>`</code> `e</p>'],
  ['- a\n- b\n  - c\n    more\n\n  d\n- e', '<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c<br>more</p></li></ul><p>d</p></li><li><p>e</p></li></ul>'],
  ['3. a\n4. b\n\ntext', '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol><p>text</p>'],
  ['1. a\n  ```sh\n  x\n    y\n  ```\n2. b', '<ol><li><p>a</p><figure class="code">[sh]<pre><code>x\n  y</code></pre></figure></li><li><p>b</p></li></ol>'],
  ['- a\n\n\n\ntext', '<ul><li><p>a</p></li></ul><p>text</p>'],
  ['> a\n> > b\n>\n> - c', '<blockquote><p>a</p><blockquote><p>b</p></blockquote><ul><li><p>c</p></li></ul></blockquote>'],
  ['a\n---\n* * *\n- - x', '<p>a</p><hr><hr><ul><li><ul><li><p>x</p></li></ul></li></ul>'],
  ['~~~\na\n```\n~~~~\nb', '<figure class="code">[]<pre><code>a\n```</code></pre></figure><p>b</p>'],
  ['```js\n<b>&amp;</b>', '<figure class="code">[js]<pre><code>&lt;b&gt;&amp;amp;&lt;/b&gt;</code></pre></figure>'],
  ['| a | b |\n|:-:|--:|\n| `x` | y\\|z | w |\n| only |\n\nend',
    '<div class="table"><table><thead><tr><th class="center">a</th><th class="right">b</th></tr></thead><tbody>'
    + '<tr><td class="center"><code>x</code></td><td class="right">y|z</td></tr><tr><td class="center">only</td></tr></tbody></table></div><p>end</p>'],
  ['a | b\n--|--\n1<br>2 | 3', '<div class="table"><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1<br>2</td><td>3</td></tr></tbody></table></div>'],
  ['a | b\n--|--|--', '<p>a | b<br>--|--|--</p>'],
  ['[a *b*](https://x.org/y_(z) "t") ok', '<p><a href="https://x.org/y_(z)">a <em>b</em></a> ok</p>'],
  ['[a](<https://x.org/b c>) <https://y.org> mailto: <mailto:a@b.org>',
    '<p><a href="https://x.org/b%20c">a</a> <a href="https://y.org/">https://y.org</a> mailto: <a href="mailto:a@b.org">mailto:a@b.org</a></p>'],
  ['见https://x.org/a。(https://y.org/b_(c)) https://z.org.', '<p>见<a href="https://x.org/a">https://x.org/a</a>。(<a href="https://y.org/b_(c)">https://y.org/b_(c)</a>) <a href="https://z.org/">https://z.org</a>.</p>'],
  ['[a](b) [c](/d) [e] [f]( [g](https://x.org', '<p><span>a</span> (b) <span>c</span> (/d) [e] [f]( [g](<a href="https://x.org/">https://x.org</a></p>'],
  ['![a](https://x.org/i.png) ![](https://x.org/j.png)', '<p><a href="https://x.org/i.png">a</a> <a href="https://x.org/j.png">https://x.org/j.png</a></p>'],
  ['[https://a.org](https://b.org)', '<p><a href="https://b.org/">https://a.org</a></p>'],
  ['[*a](https://x.org)*', '<p><a href="https://x.org/">*a</a>*</p>'],
  ['<script>alert(1)</script> <img src=x onerror=alert(1)> &lt;', '<p>&lt;script&gt;alert(1)&lt;/script&gt; &lt;img src=x onerror=alert(1)&gt; &amp;lt;</p>'],
];

test('each kind of Markdown becomes its elements', async () => {
  await withPage(mock.url, {}, async (page) => {
    const got = await shapes(page, CASES.map(([source]) => source));
    CASES.forEach(([source, wanted], at) => assert.equal(got[at], wanted, source));
  });
});

test('links go to http, https and mailto only, however they are written', async () => {
  const addresses = ['javascript:alert(1)', 'JaVaScRiPt:alert(1)', '\tjavascript:alert(1)', 'java\\script:alert(1)', '&#106;avascript:alert(1)',
    'data:text/html,<script>alert(1)</script>', 'vbscript:x', 'file:///etc/passwd', 'blob:https://x.org/1', '//evil.org', 'https:', 'ftp://x.org', '\u0001javascript:alert(1)'];
  const forms = (address) => [`[a](${address})`, `[a](<${address}>)`, `<${address}>`, `![a](${address})`, address];
  await withPage(mock.url, {}, async (page) => {
    const links = await page.evaluate(async (sources) => {
      const { MarkdownView } = await import('/markdown.js');
      const root = document.createElement('div');
      new MarkdownView(root).set(sources.join('\n\n'));
      return [...root.querySelectorAll('*')].flatMap((node) => [...node.attributes])
        .filter(({ name, value }) => ['href', 'src'].includes(name) && !/^(https?:\/\/|mailto:)/.test(value)).map(({ value }) => value);
    }, addresses.flatMap(forms));
    assert.deepEqual(links, []);
  });
});

test('an answer that comes in pieces ends as the same elements as one that comes whole', async () => {
  const texts = [ENGLISH, CHINESE, ...CASES.map(([source]) => source), CASES.map(([source]) => source).join('\n\n'), 'a\r\n\r\n- b\r\n\r\n\r\nc\r', '\n\n  \n'];
  await withPage(mock.url, {}, async (page) => {
    const differing = await page.evaluate(async (sources) => {
      const { MarkdownView } = await import('/markdown.js');
      const shown = (cuts, source) => {
        const root = document.createElement('div');
        const view = new MarkdownView(root);
        for (const cut of cuts) view.set(source.slice(0, cut));
        view.set(source);
        return root.innerHTML;
      };
      return sources.filter((source) => {
        const whole = shown([], source);
        const each = [...source].map((_, at) => at);
        return [1, 2, 3, 7].some((step) => shown(each.filter((at) => at % step === 0), source) !== whole);
      });
    }, texts);
    assert.deepEqual(differing, []);
  });
});

const SIZE = 100_000;
const fill = (piece) => piece.repeat(Math.ceil(SIZE / piece.length)).slice(0, SIZE);
const BOMBS = {
  'no space': fill('a'), 'no space, Chinese': fill('字'), stars: fill('*'), underscores: fill('_'), tildes: fill('~'), backticks: fill('`'),
  brackets: fill('['), 'images': fill('!['), 'closing brackets': fill('[') + fill(']'), 'links that never end': fill('[]('),
  'links with brackets': fill('[](a('), 'links with titles': fill('[](a "'), 'links with other titles': fill(`[](a '[](b "`), 'angled links': fill('[](<a'),
  bars: fill('|'), quotes: fill('>'), 'quotes with spaces': fill('> '), hashes: fill('#'), 'angle brackets': fill('<'), 'open tags': fill('<br '),
  escapes: fill('\\'), 'stars between letters': fill('a*'), 'double stars': fill('a**b'), 'mixed marks': fill('*a _b ~~c '),
  'nested emphasis': `${fill('*a ')}${fill(' a*')}`, 'backticks of all lengths': Array.from({ length: 440 }, (_, n) => '`'.repeat(n + 1)).join(' '),
  addresses: fill('https://'), 'addresses with brackets': `https://a${fill(')')}`, 'addresses with stops': fill('https://a.....'), spaces: `a${fill(' ')}b`, 'spaces before a bar': `a | b\n${fill(' ')}|-`,
  'nested lists': Array.from({ length: 440 }, (_, n) => `${' '.repeat(2 * n)}- a`).join('\n'), 'one line of lists': fill('- '),
  'list items': fill('- a\n'), numbers: fill('1. a\n'), 'table rows': `| a | b |\n|---|---|\n${fill('| c | d |\n')}`,
  'wide table': `${fill('|a')}\n${fill('|-')}\n${fill('|b')}`, 'empty cells': `${'|a'.repeat(64)}\n${'|-'.repeat(64)}\n${fill('|\n')}`,
  'many tables': fill('|a|\n|-|\n\n'), 'open fences': fill('```\n'), rules: fill('---\n'), paragraphs: fill('a\n\n'), lines: fill('a\n'), 'delimiter rows': fill('|-\n'),
};

test('100 KB of anything are shown at once, keep to the page and are not nested deeply', async () => {
  await withPage(mock.url, { viewport: { width: 360, height: 740 } }, async (page) => {
    await render(page, ENGLISH);
    for (const [name, text] of Object.entries(BOMBS)) {
      const { took, depth } = await page.evaluate(measure, text);
      const shown = await render(page, text);
      console.log(`# ${name}: ${took.toFixed(0)} ms, ${shown.toFixed(0)} ms with layout, ${depth} deep`);
      assert.ok(took < 200, `${name}: ${took} ms`);
      assert.ok(shown < 2000, `${name}: ${shown} ms with layout`);
      assert.ok(depth < 48, `${name}: ${depth} elements deep`);
      assert.deepEqual(await page.evaluate(tooWide), [], name);
    }
  });
});

/** In the browser: the milliseconds that it takes to make a text's elements, and how deep they are. */
async function measure(source) {
  const { MarkdownView } = await import('/markdown.js');
  let root;
  let took = Infinity;
  // The shortest of some: the tests may share their processors.
  for (let run = 0; run < 5 && took > 100; run += 1) {
    root = document.createElement('div');
    const began = performance.now();
    new MarkdownView(root).set(source);
    took = Math.min(took, performance.now() - began);
  }
  let depth = 0;
  for (let level = [...root.children]; level.length > 0; level = level.flatMap((node) => [...node.children])) depth += 1;
  return { took, depth };
}

/** In the browser: what is wider than the page; tables and code scroll by themselves. */
function tooWide() {
  const width = document.getElementById('scroll').clientWidth;
  return [document.documentElement, document.querySelector('.message'), ...document.querySelectorAll('.markdown > :not(.table, .code)')]
    .filter((node) => node.scrollWidth > width).map((node) => `${node.localName}: ${node.scrollWidth} of ${width}`);
}

test('a long answer in small pieces costs a little more than its length, not its square', async () => {
  await withPage(mock.url, {}, async (page) => {
    const times = await page.evaluate(async (part) => {
      const { MarkdownView } = await import('/markdown.js');
      const stream = (parts) => {
        const source = part.repeat(parts);
        const view = new MarkdownView(document.createElement('div'));
        const began = performance.now();
        for (let at = 0; at < source.length; at += 20) view.set(source.slice(0, at));
        return performance.now() - began;
      };
      stream(20);
      return [stream(20), stream(160)];
    }, `${ENGLISH}\n`);
    console.log(`# streamed ${times.map((ms) => ms.toFixed(0)).join(' and ')} ms`);
    // Eight times the text.
    assert.ok(times[1] < 20 * times[0], times.join(' and '));
  });
});
