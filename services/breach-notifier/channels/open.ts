import type { Clock } from "@curfew/runtime/clock.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import { mayBePlain, type PagingConfig } from "../paging.ts";
import type { Channel } from "./page.ts";
import { openSmtpChannel } from "./smtp.ts";
import { openWebhookChannel } from "./webhook.ts";

/** The channel of every configured target, by its name. `domain` stands in the ids of mails. */
export const openChannels = ({ targets, allow }: PagingConfig, domain: string, clock: Clock): Map<string, Channel> =>
  new Map(
    targets.map((target): [string, Channel] => {
      if (target.channel === "smtp")
        return [target.name, openSmtpChannel(target, { plain: mayBePlain(target, allow), domain })];
      const ca = target.caPem === undefined ? {} : { ca: [target.caPem] };
      return [target.name, openWebhookChannel(target, openOutbound({ allow, clock, ...ca }))];
    }),
  );
