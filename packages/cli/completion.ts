import { type Application, buildCommand, type CommandContext, proposeCompletions } from "@stricli/core";
import { standardOutput } from "./output.ts";

/** One completion a line for the last of `words`. */
export const completionsOf = async (
  app: Application<CommandContext>,
  words: readonly string[],
  context: CommandContext,
) => (await proposeCompletions(app, words, context)).map(({ completion }) => `${completion}\n`).join("");

const bash = `_curfew() {
  local IFS=$'\\n'
  COMPREPLY=($(curfew __complete "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _curfew curfew
`;

export const completion = buildCommand({
  docs: { brief: 'Print the completion of a shell: eval "$(curfew completion bash)"' },
  parameters: {
    flags: {},
    positional: {
      kind: "tuple",
      parameters: [
        {
          parse: (shell: string) => {
            if (shell !== "bash") throw new Error("there is one for bash");
            return shell;
          },
          brief: "bash",
          placeholder: "SHELL",
        },
      ],
    },
  },
  func: (_flags: Readonly<Record<never, never>>, _shell: string) => standardOutput.write(bash),
});
