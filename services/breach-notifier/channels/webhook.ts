import { createHmac } from "node:crypto";
import { type Outbound, OutboundRefused } from "@curfew/runtime/outbound.ts";
import type { WebhookTarget } from "../paging.ts";
import { type Channel, ChannelFailed, dataOf, type PageContent, PageRefused, pageKey } from "./page.ts";

/** `v1` signature of Standard Webhooks: HMAC-SHA256 over id, timestamp and body, base64. */
export const signature = (secret: Uint8Array, id: string, timestamp: number, body: string): string =>
  `v1,${createHmac("sha256", secret).update(`${id}.${timestamp}.${body}`).digest("base64")}`;

/** Posts pages signed after Standard Webhooks. Everything but a 2xx is a failure, a redirect too. */
export const openWebhookChannel = (target: WebhookTarget, outbound: Outbound): Channel => ({
  async send(page: PageContent): Promise<string> {
    const id = `msg_${pageKey(page.pageId)}`;
    const timestamp = Math.floor(page.nowMs / 1_000);
    const body = JSON.stringify({
      type: "curfew.page.due",
      timestamp: new Date(page.nowMs).toISOString(),
      data: dataOf(page),
    });
    const headers = {
      "content-type": "application/json",
      "user-agent": "curfew",
      "webhook-id": id,
      "webhook-timestamp": String(timestamp),
      "webhook-signature": signature(target.secret, id, timestamp, body),
    };
    const answer = await outbound.post(target.url, { headers, body }).catch((error: unknown): never => {
      if (error instanceof OutboundRefused) throw new PageRefused("the rules for outbound calls forbid this webhook");
      throw new ChannelFailed("the webhook could not be reached, or gave no whole answer in time");
    });
    if (!answer.ok) throw new ChannelFailed(`the webhook answered ${answer.status}`);
    return id;
  },
});
