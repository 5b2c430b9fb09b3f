/** Nothing beyond what every service is told (packages/rpc/process.ts). */
export const revocationSpec = {} as const;

/** The environment, read here and in main only. */
export const environment = process.env;
